"""The victim on a machine whose wall clock is off by CHAOS_CLOCK_HOURS."""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta, tzinfo
from typing import Any

import procrastinate.utils

from tests.chaos.victim import app

__all__ = ["app"]

OFFSET = 3600.0 * float(os.environ["CHAOS_CLOCK_HOURS"])
_time = time.time


def shifted() -> float:
    return _time() + OFFSET


class Shifted(datetime):
    """datetime.now of that machine."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        return datetime.now(tz) + timedelta(seconds=OFFSET)


time.time = shifted
procrastinate.utils.utcnow = lambda: datetime.now().astimezone() + timedelta(seconds=OFFSET)
