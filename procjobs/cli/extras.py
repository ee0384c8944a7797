"""Packages that only some commands need, and what installs them."""

from __future__ import annotations

import re
from importlib import metadata

__all__ = ["missing"]

#: Extras that take in others: the small one is named instead.
_WHOLE = {"up", "bench", "dev"}


def missing(error: ImportError) -> str | None:
    """The sentence for a package of an extra that is not installed; None for any other failure to import."""
    if "no pq wrapper available" in str(error):  # psycopg, with neither its own libpq nor the system's
        return "psycopg finds no libpq; pip install 'procjobs[binary]', or install your system's libpq5"
    package = (error.name or "").partition(".")[0].replace("_", "-")
    for requirement in metadata.requires("procjobs") or ():
        found = re.match(r"([\w-]+)\b.*\bextra == ['\"]([\w-]+)['\"]", requirement)
        if found is not None and found[1].lower() == package and found[2] not in _WHOLE:
            return f"{package} is not installed; pip install 'procjobs[{found[2]}]'"
    return None
