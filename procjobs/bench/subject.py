"""One contender in a process of its own: drains the database and ends.

python -m procjobs.bench.subject KIND DSN CONCURRENCY
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from typing import Any

import procrastinate

import procjobs

__all__ = ["make_app"]


async def _noop() -> None:
    pass


def make_app(kind: str, dsn: str) -> procrastinate.App:
    """An app of the kind `stock` or `procjobs` with the one task `noop`."""
    app: procrastinate.App
    if kind == "stock":
        app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, max_size=20))
    else:
        app = procjobs.App(dsn)
    app.task(name="noop")(_noop)
    return app


async def _drain(kind: str, dsn: str, concurrency: int) -> None:
    app = make_app(kind, dsn)
    async with app.open_async():
        gc.freeze()
        await app.run_worker_async(wait=False, concurrency=concurrency, install_signal_handlers=False)


def main(arguments: list[str]) -> None:
    kind, dsn, concurrency = arguments
    logging.basicConfig(level=logging.ERROR)
    options: dict[str, Any] = {}
    asyncio.run(_drain(kind, dsn, int(concurrency)), **options)


if __name__ == "__main__":
    main(sys.argv[1:])
