"""Errors as one sentence: what is wrong, the values, and the mend."""

from __future__ import annotations

import re

from procjobs.errors import DatabaseError, DatabaseUnavailable, ProcjobsError
from procjobs.logs import one_line

__all__ = ["sentence"]

#: The SQLSTATEs of a database that was never migrated: no such schema, function or table.
_NOT_MIGRATED = {"3F000", "42883", "42P01"}


def sentence(error: Exception) -> str:
    """The error in one line."""
    if not isinstance(error, ProcjobsError):
        return _line(f"unexpected {type(error).__name__}: {error} (procjobs --debug ... shows the traceback)")
    text = error.message
    hint = error.hint
    if isinstance(error, DatabaseError):
        if error.detail:
            text = f"{text.rstrip('.')} ({error.detail.rstrip('.')})"
        if hint is None and error.sqlstate in _NOT_MIGRATED:
            hint = "run: procjobs migrate"
        if hint is None and isinstance(error, DatabaseUnavailable):
            hint = "check DATABASE_URL and that the server is running"
    return _line(f"{text}; {_continued(hint)}" if hint else text)


def _continued(hint: str) -> str:
    """The hint as the second half of a sentence: no capital, unless it is a name or an abbreviation."""
    return hint[0].lower() + hint[1:] if hint[1:2].islower() else hint


def _line(text: str) -> str:
    return one_line(re.sub(r"\s*\n\s*", "; ", text.strip()).replace("\t", " "))
