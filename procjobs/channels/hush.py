"""Libraries of ours log no URL while we call: the path of a Slack or Telegram URL is a password."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["hushed"]

_hush: ContextVar[bool] = ContextVar("procjobs_hush", default=False)


class _Hush(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not (_hush.get() and record.levelno < logging.WARNING)


for _name in ("httpx2", "httpcore2.connection", "httpcore2.http11", "apprise", "urllib3.connectionpool"):
    logging.getLogger(_name).addFilter(_Hush())


@contextmanager
def hushed() -> Iterator[None]:
    """In here, in this task and its threads, nothing below WARNING is logged by them."""
    token = _hush.set(True)
    try:
        yield
    finally:
        _hush.reset(token)
