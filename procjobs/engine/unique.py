"""When two jobs of a task are the same, and options of single jobs in the form that SQL takes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from procjobs.engine.results import Outcome

__all__ = ["OPTIONS", "JobId", "Unique", "Waiter", "job_options", "seconds"]

#: Waits for the end of a job, at most so many seconds.
Waiter = Callable[[int, float | None], "Awaitable[Outcome]"]

While = Literal["waiting", "unfinished", "retained"]
_WHILE = ("waiting", "unfinished", "retained")

#: What `configure` takes beyond Procrastinate's own options.
OPTIONS = frozenset(("tenant", "unique_key", "unique_for", "unique_while", "tags", "max_attempts", "timeout", "batch"))


class JobId(int):
    """The id of a job that was deferred, which is all there is to a job outside the database.

        job = await thumbnail.defer_async(photo_id=7)
        url = await job.result(timeout=30)

    `duplicate` is true when that job was there already.
    """

    duplicate: bool = False
    _waiter: Waiter | None = None

    @classmethod
    def of(cls, job_id: int, waiter: Waiter | None) -> JobId:
        """The id of a job that `waiter` can wait for."""
        found = cls(job_id)
        found._waiter = waiter
        return found

    async def wait(self, *, timeout: float | None = None) -> Outcome:
        """`app.wait_for` of this job: wait until it has ended, however it does. Raises JobNotOver, JobNotFound."""
        if self._waiter is None:
            raise RuntimeError(f"job {int(self)} was not deferred here: await app.wait_for({int(self)})")
        return await self._waiter(int(self), timeout)

    async def result(self, *, timeout: float | None = None) -> Any:
        """`app.result` of this job: wait, and give what its task returned. Also raises JobFailed, JobCancelled."""
        return (await self.wait(timeout=timeout)).value()

    def __getstate__(self) -> dict[str, Any]:
        return {"duplicate": self.duplicate}  # an id that is copied or pickled leaves its app behind


@dataclass(frozen=True)
class Unique:
    """Jobs of a task with equal arguments are one: `@app.task(unique=procjobs.Unique(args=("user_id",), period=3600))`.

    args:   names of the arguments that count; None is all of them.
    period: for that long after it was enqueued, whatever becomes of the job: seconds or a timedelta.
    states: how long a job stands for its arguments besides: while it is `waiting`, `unfinished` (waiting or running)
            or `retained` (in the job table or the history).
    """

    args: Sequence[str] | None = None
    period: float | timedelta | None = None
    states: While = "unfinished"

    def __post_init__(self) -> None:
        if self.states not in _WHILE:
            raise ValueError(f"states={self.states!r}: one of {', '.join(_WHILE)}")
        if isinstance(self.args, str):
            raise ValueError(f"args={self.args!r}: a sequence of names, as in ({self.args!r},)")
        if self.period is not None and seconds(self.period) <= 0:
            raise ValueError(f"period={self.period!r}: more than nothing")

    @property
    def rule(self) -> dict[str, Any]:
        """As the database keeps it in `procjobs.tasks.uniqueness`."""
        return {
            "args": None if self.args is None else sorted(self.args),
            "period": None if self.period is None else seconds(self.period),
            "while": self.states,
        }


def seconds(span: float | timedelta) -> float:
    """A span of time in seconds."""
    return span.total_seconds() if isinstance(span, timedelta) else float(span)


def job_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `configure` (those in OPTIONS) by the names of `procjobs.defer`; those that are None are left out."""
    options = {name: value for name, value in given.items() if value is not None}
    for span in ("unique_for", "timeout"):
        if span in options:
            options[span] = seconds(options[span])
    if "batch" in options:
        options["batch_id"] = int(options.pop("batch"))
    if "tags" in options:
        options["tags"] = list(options["tags"])
    return options
