"""The application of workers that send mail: the packs' tasks alone."""

from __future__ import annotations

from procjobs.app import default_app

__all__ = ["app"]

app = default_app()
