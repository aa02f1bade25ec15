"""A test facility: a process that kills itself at a named moment.

``SAK_FAULT="<phase>:<n>"`` makes the n-th call (from 1) of ``fault_point("<phase>")`` in this process raise
SIGKILL, which nothing can catch, as a power cut would. The phases are named where they are called:

- ``prepare``: a source shard's files are written under temporary names, none is renamed
- ``calibrate``: calibration files are in place, their manifest entry is not
- ``write``: a teacher shard's files are written under temporary names, none is renamed
- ``commit``: a shard's files are in place, its manifest entry is not
- ``compact``: a view's compacted manifest is in place, the entries it replaces still lie beside it
- ``drop``: a part's rows are no longer committed; their files are deleted; the manifest names fewer views than the
  arrays' metadata
- ``repair``: what is made again (metadata, calibration, a shard's files) is written under temporary names, none is
  renamed; or a shard whose manifest file is beyond mending is no longer committed
- ``join``: what was left out is there again, and the store still says that it is not
- ``grow``: arrays' metadata name the new number of views, the manifest does not
"""

from __future__ import annotations

import os
import signal
from collections import Counter

_calls: Counter[str] = Counter()


def fault_point(phase: str) -> None:
    """Kill this process if ``SAK_FAULT`` names this call of `phase`; otherwise do nothing."""
    wanted = os.environ.get("SAK_FAULT")
    if not wanted:
        return
    _calls[phase] += 1
    if wanted == f"{phase}:{_calls[phase]}":
        os.kill(os.getpid(), signal.SIGKILL)
