"""An exception that says how long to wait is not retried before."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

import procjobs
from procjobs.engine.retry import not_before


class Busy(Exception):
    def __init__(self, retry_after: Any) -> None:
        super().__init__("busy")
        self.retry_after = retry_after


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        *[(30, 30.0), (1.5, 1.5), (timedelta(minutes=2), 120.0), (0, None), (-1, None), (None, None), ("soon", None)],
        *[(True, None), (float("nan"), None), (float("inf"), None), (1e12, None)],
    ],
)
def test_only_a_number_of_seconds_counts(retry_after: Any, seconds: float | None) -> None:
    assert not_before(Busy(retry_after)) == ({} if seconds is None else {"not_before": seconds})
    assert not_before(ValueError("no wish")) == {}


@pytest.mark.parametrize(("retry_after", "waits"), [(1800, 1800), (5, 60)])
async def test_the_longer_of_both_waits_holds(dsn: str, sql: Any, retry_after: float, waits: int) -> None:
    app = procjobs.App(dsn)

    @app.task(name="call", retry=procjobs.Retry(max_attempts=3, base=60, jitter=False))
    async def call() -> None:
        raise Busy(retry_after)

    async with app.open_async():
        await call.defer_async()
        await app.run_worker_async(wait=False, install_signal_handlers=False)
    assert sql(
        "select attempts, round(extract(epoch from scheduled_at - procjobs.clock()) / 10)::int * 10 "
        "from public.procrastinate_jobs"
    ) == [(1, waits)]
    assert sql.one("select retry_at = (select scheduled_at from public.procrastinate_jobs) from procjobs.job_attempts")
