"""One run: every contender and shape in turn, round after round, on one server."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psycopg

from procjobs.bench.contenders import CONTENDERS, Contender, Peer
from procjobs.bench.databases import Databases
from procjobs.bench.drain import drain, prepare
from procjobs.bench.environments import Environments, NotInstalled
from procjobs.bench.measures import MODES, bytes_per_job, enqueue_rate, waits
from procjobs.bench.shapes import EMPTY, SHAPES, UNCHECKED, Shape

__all__ = ["MEASURES", "Figures", "Run", "ours"]

MEASURES = ("drain", "shapes", "enqueue", "latency", "size")
#: The contenders that are measured in shapes: the stock one and ours at its best.
_SHAPED = ("Procrastinate, concurrency 10, 1 process", "procjobs, concurrency 500, 1 process")

Samples = dict[tuple[str, str, str], list[float]]


def ours(name: str) -> bool:
    """Whether this contender is procjobs."""
    return name.startswith("procjobs")


@dataclass
class Figures:
    """All samples by (measure, contender or peer, what); versions of the peers; what was left out, and why."""

    samples: Samples = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, measure: str, who: str, what: str, value: float) -> None:
        self.samples.setdefault((measure, who, what), []).append(value)

    def median(self, measure: str, who: str, what: str = "") -> float | None:
        """The median over the rounds, or None if this was not measured."""
        found = self.samples.get((measure, who, what))
        return statistics.median(found) if found else None


@dataclass
class Run:
    """scale: the part of the jobs that a quick run takes. only: parts of names, all contenders if there are none."""

    databases: Databases
    environments: Environments
    rounds: int
    measures: Sequence[str] = MEASURES
    only: Sequence[str] = ()
    scale: float = 1.0
    seed: int = 1
    said: Callable[[str], None] = print
    figures: Figures = field(default_factory=Figures)

    def all(self) -> Figures:
        """Measure everything, interleaved."""
        contenders = [c for c in CONTENDERS if self._wanted(c) and self._installed(c.peer)]
        shapes = [s for s in SHAPES if s is not EMPTY] if self.scale == 1.0 else []
        order = random.Random(self.seed)
        for number in range(1, self.rounds + 1):
            steps: list[tuple[str, Callable[[], None]]] = []
            if "drain" in self.measures:
                steps += [(c.name, lambda c=c: self._drain(c, EMPTY)) for c in contenders]  # type: ignore[misc]
            if "shapes" in self.measures:
                steps += [
                    (f"{c.name}: {s.name}", lambda c=c, s=s: self._drain(c, s))  # type: ignore[misc]
                    for s in shapes
                    for c in contenders
                    if c.name in _SHAPED and (ours(c.name) or (s.stock and number == 1))
                ]
            first = {c.peer.name: c for c in reversed(contenders) if c.peer.modes and c.task == "noop"}
            for c in first.values():
                steps += [(f"{c.peer.name}: {m}", lambda c=c, m=m: self._peer(c, m)) for m in self._of(c, number)]  # type: ignore[misc]
            order.shuffle(steps)
            for name, step in steps:
                try:
                    step()
                except (RuntimeError, psycopg.Error, ValueError) as error:
                    self.figures.left_out[name] = " ".join(str(error).split())[:300]
                    self.said(f"round {number}: {name}: left out: {error}")
        return self.figures

    def _wanted(self, contender: Contender) -> bool:
        return not self.only or any(word.lower() in contender.name.lower() for word in self.only)

    def _installed(self, peer: Peer) -> bool:
        if peer.name not in self.figures.versions and peer.name not in self.figures.left_out:
            try:
                self.figures.versions[peer.name] = self.environments.prepare(peer)
            except NotInstalled as error:
                self.figures.left_out[peer.name] = f"not installed: {error}"
                self.said(f"{peer.name} is left out: {error}")
        return peer.name in self.figures.versions

    def _of(self, contender: Contender, number: int) -> list[str]:
        found = [m for m in contender.peer.modes if "enqueue" in self.measures]
        if "latency" in self.measures and contender.peer.notified:
            found.append("latency")
        if "size" in self.measures and number == 1:
            found.append("size")
        return found

    def _template(self, contender: Contender, shape: Shape) -> str:
        def fill(dsn: str) -> None:
            prepare(self.environments, contender, dsn)
            if shape.fill:
                with psycopg.connect(dsn, autocommit=True) as connection:
                    connection.execute(UNCHECKED)
                    connection.execute(shape.fill.encode())

        which = [s.name for s in SHAPES].index(shape.name)
        return self.databases.template(f"{contender.peer.program.partition('.')[0]}_{which}", fill)

    def _drain(self, contender: Contender, shape: Shape) -> None:
        jobs = max(100, int(contender.jobs * self.scale))
        jobs -= jobs % 500 if contender.peer.program == "pgbench" else 0
        with self.databases.clone(self._template(contender, shape)) as dsn:
            done = drain(self.environments, contender, shape, dsn, max(jobs, 500))
        self.figures.add("drain", contender.name, shape.name, done.rate)
        if shape.beside:
            self.figures.add("beside", contender.name, shape.name, done.beside / done.seconds)
        self.said(f"{contender.name}, {shape.name}: {done.rate:,.0f}/s")

    def _peer(self, contender: Contender, what: str) -> None:
        name = contender.peer.name
        with self.databases.clone(self._template(contender, EMPTY)) as dsn:
            if what == "latency":
                one = Contender(contender.peer, 10 if contender.concurrency < 100 else 101, 1, 0)
                found = waits(self.environments, one, dsn, max(50, int(300 * self.scale)))
                for part in ("p50", "p95", "p99"):
                    self.figures.add("latency", name, part, getattr(found, part))
                self.said(f"{name}: starts after {found.p50:.1f} / {found.p95:.1f} / {found.p99:.1f} ms")
            elif what == "size":
                size = bytes_per_job(self.environments, contender, dsn, int(100_000 * self.scale))
                self.figures.add("size", name, "", size)
                self.said(f"{name}: {size:,.0f} bytes a job")
            else:
                count, words = MODES[what]
                rate = enqueue_rate(self.environments, contender, dsn, what, max(100, int(count * self.scale)))
                self.figures.add("enqueue", name, words, rate)
                self.said(f"{name}: enqueues {words}: {rate:,.0f}/s")
