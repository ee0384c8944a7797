"""The figures as tables: for the terminal, for the documentation, and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from procjobs.bench.contenders import CONTENDERS, PEERS
from procjobs.bench.measures import MODES
from procjobs.bench.run import Figures, ours
from procjobs.bench.shapes import EMPTY, SHAPES

__all__ = ["BEGIN", "END", "as_json", "grids", "markdown", "tables"]

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
_STOCK = CONTENDERS[0].name


@dataclass(frozen=True)
class Grid:
    """A table before it has a form: the first column is words, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def grids(figures: Figures) -> Iterator[Grid]:
    """The tables that have rows."""
    for grid in (_drained(figures), _shaped(figures), _enqueued(figures), _waited(figures), _sized(figures)):
        if grid.rows:
            yield grid


def _drained(figures: Figures) -> Grid:
    stock = figures.median("drain", _STOCK, EMPTY.name)
    rows = []
    for contender in CONTENDERS:
        rate = figures.median("drain", contender.name, EMPTY.name)
        if rate is not None:
            found = figures.samples["drain", contender.name, EMPTY.name]
            times = f"{rate / stock:,.1f}" if stock else ""
            rows.append((contender.name, f"{rate:,.0f}", f"{min(found):,.0f}-{max(found):,.0f}", times))
    return Grid("Jobs a second, empty tables", ("contender", "jobs/s", "range", "times stock"), rows)


def _shaped(figures: Figures) -> Grid:
    rows = []
    for shape in SHAPES:
        for contender in CONTENDERS:
            rate = figures.median("drain", contender.name, shape.name)
            empty = figures.median("drain", contender.name, EMPTY.name)
            if shape is EMPTY or rate is None:
                continue
            part = f"{rate / empty:.0%}" if empty else ""
            beside = figures.median("beside", contender.name, shape.name)
            who = f"{contender.peer.name}: {shape.name}"
            rows.append((who, f"{rate:,.0f}", part, "" if beside is None else f"{beside:,.0f}"))
    rows.sort(key=lambda row: not ours(row[0]))
    columns = ("what else is there", "jobs/s", "of empty tables", "the others beside, /s")
    return Grid("Jobs a second, other tables", columns, rows)


def _enqueued(figures: Figures) -> Grid:
    words = [words for _, words in MODES.values()]
    rows = []
    for peer in PEERS:
        found = [figures.median("enqueue", peer.name, way) for way in words]
        if any(found):
            rows.append((peer.name, *("" if rate is None else f"{rate:,.0f}" for rate in found)))
    return Grid("Jobs enqueued a second by one caller", ("queue", *words), rows)


def _waited(figures: Figures) -> Grid:
    parts = ("p50", "p95", "p99")
    rows = []
    for peer in PEERS:
        found = [figures.median("latency", peer.name, part) for part in parts]
        if any(found):
            rows.append((peer.name, *(f"{wait:.1f}" for wait in found if wait is not None)))
    return Grid("Milliseconds from the enqueueing call to the start, idle worker", ("queue", *parts), rows)


def _sized(figures: Figures) -> Grid:
    sizes = [(peer.name, figures.median("size", peer.name)) for peer in PEERS]
    rows = [(name, f"{size:,.0f}") for name, size in sizes if size is not None]
    return Grid("Megabytes on disk for 1,000,000 waiting jobs (tables and indexes)", ("queue", "MB"), rows)


def tables(figures: Figures, about: dict[str, str]) -> Iterator[Table | str]:
    """For the terminal."""
    for grid in grids(figures):
        table = Table(title=grid.title)
        for number, column in enumerate(grid.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in grid.rows:
            table.add_row(*row)
        yield table
    yield ", ".join(f"{name} {value}" for name, value in {**about, **figures.versions}.items())
    for name, reason in figures.left_out.items():
        yield f"left out: {name}: {reason}"


def markdown(page: str, figures: Figures, about: dict[str, str]) -> str:
    """The page with these figures between its marks. Raises ValueError when it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    where = (
        f"{about['processors']} processors, {about['memory']}, a flush to disk takes {about['flush']}, "
        f"load when it ended {about['load']} (1 where nothing else ran); "
        f"PostgreSQL {about['postgresql']}, Python {about['python']}, psycopg {about['psycopg']}; "
        f"medians of {about['rounds']} interleaved rounds, order by seed {about['seed']}: `{about['command']}`."
    )
    lines = [where, "", "; ".join(f"{name} {number}" for name, number in figures.versions.items()) + ".", ""]
    for grid in grids(figures):
        lines += [f"### {grid.title}", "", "| " + " | ".join(grid.columns) + " |"]
        lines += ["|---|" + "---:|" * (len(grid.columns) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in grid.rows] + [""]
    lines += [f"Left out: {name}: {reason}" for name, reason in figures.left_out.items()]
    return f"{before}{begin}\n" + "\n".join(lines).rstrip() + f"\n{end}{after}"


def as_json(figures: Figures, about: dict[str, str]) -> dict[str, Any]:
    """Everything, for whoever compares runs."""
    return {
        **about,
        "versions": figures.versions,
        "left_out": figures.left_out,
        "results": [
            {"measure": measure, "who": who, "what": what, "median": statistics.median(found), "samples": found}
            for (measure, who, what), found in figures.samples.items()
        ],
    }
