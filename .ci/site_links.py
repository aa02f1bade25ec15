"""A hook of mkdocs: links from the pages to the project's own files, which the forge shows and the site does not have.

Such a file must be there, or the build fails; on the site its name stands without a link.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(?:#[^)]*)?\)")
log = logging.getLogger("mkdocs.hooks.site_links")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """See mkdocs."""
    docs = Path(config.docs_dir).resolve()

    def without_link(found: re.Match[str]) -> str:
        target = (docs / page.file.src_path).parent.joinpath(found[2]).resolve()
        if target.is_relative_to(docs):
            return found[0]
        if not target.exists():
            log.warning("%s links to %s, which is not there", page.file.src_path, found[2])
        return found[1]

    return LINK.sub(without_link, markdown)
