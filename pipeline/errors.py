"""Errors that are the user's to mend: said in one line, without a traceback."""

from __future__ import annotations

from sak_common.errors import SakError


class UserError(SakError):
    """Something is wrong with what was asked or with what it was asked of; the message says what to do."""
