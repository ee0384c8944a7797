"""When two jobs of a task are the same, and options of single jobs in the form that SQL takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

__all__ = ["OPTIONS", "JobId", "Unique", "job_options", "seconds"]

While = Literal["waiting", "unfinished", "retained"]
_WHILE = ("waiting", "unfinished", "retained")

#: What `configure` takes beyond Procrastinate's own options.
OPTIONS = frozenset(("tenant", "unique_key", "unique_for", "unique_while", "tags", "max_attempts", "timeout", "batch"))


class JobId(int):
    """The id of a job that was deferred. `duplicate` is true when that job was there already."""

    duplicate: bool = False


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
