"""`procjobs bench`: runs the contenders, prints the table, and the figures as JSON for whoever compares runs."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import psycopg
from rich.console import Console
from rich.table import Table

from procjobs.bench.drain import CONTENDERS, SHAPES, Result, run
from procjobs.embedded import EmbeddedPostgres

__all__ = ["bench"]

#: As a production server would be: durable, with room in memory; no checkpoint in the middle of a round.
_SERVER = {"shared_buffers": "1GB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}


@click.command()
@click.option("--dsn", help="A database of a server where databases may be created; default: an embedded PostgreSQL.")
@click.option("--rounds", default=3, show_default=True, help="How often every contender runs.")
@click.option("--quick", is_flag=True, help="Empty tables only, fewer contenders.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures as JSON to this file too."
)
def bench(dsn: str | None, rounds: int, quick: bool, as_json: bool, save: Path | None) -> int:
    """Measure how fast a backlog of no-op jobs drains: stock Procrastinate and procjobs, side by side."""
    contenders = [c for c in CONTENDERS if not quick or c.concurrency != 100]
    shapes = SHAPES[:1] if quick else SHAPES
    progress = Console(stderr=True)
    with _server(dsn) as server:
        results = run(server, contenders, shapes, rounds, lambda words: progress.print(words, style="dim"))
        figures = _figures(server, results, rounds)
    if save is not None:
        save.write_text(json.dumps(figures, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        _print(figures)
    return 0


@contextmanager
def _server(dsn: str | None) -> Iterator[str]:
    if dsn is not None:
        yield dsn
        return
    with tempfile.TemporaryDirectory(prefix="procjobs-bench-") as folder:
        Path(folder).chmod(0o711)
        with EmbeddedPostgres(Path(folder) / "pg", server_settings=_SERVER) as running:
            yield running.dsn()


def _figures(server: str, results: Sequence[Result], rounds: int) -> dict[str, Any]:
    with psycopg.connect(server) as connection:
        postgres = connection.info.parameter_status("server_version")
    stock = next(r.median for r in results if r.contender.kind == "stock")
    empty = {r.contender.name: r.median for r in results if not r.shape.fill}
    return {
        "postgresql": postgres,
        "procrastinate": version("procrastinate"),
        "psycopg": version("psycopg"),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "rounds": rounds,
        "command": "procjobs bench " + " ".join(sys.argv[2:]),
        "results": [
            {
                "contender": r.contender.name,
                "shape": r.shape.name,
                "jobs": r.contender.jobs,
                "jobs_per_second": round(r.median),
                "lowest": round(min(r.rates)),
                "highest": round(max(r.rates)),
                "times_stock": round(r.median / stock, 1),
                "of_empty_tables": round(r.median / empty[r.contender.name], 2),
            }
            for r in results
        ],
    }


def _print(figures: dict[str, Any]) -> None:
    table = Table(
        title=f"jobs a second, medians of {figures['rounds']} interleaved rounds; "
        f"PostgreSQL {figures['postgresql']}, Procrastinate {figures['procrastinate']}, "
        f"{figures['processors']} processors"
    )
    for name, side in (
        ("contender", "left"),
        ("tables", "left"),
        ("jobs/s", "right"),
        ("range", "right"),
        ("x stock", "right"),
        ("of empty", "right"),
    ):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for r in figures["results"]:
        table.add_row(
            r["contender"],
            r["shape"],
            f"{r['jobs_per_second']:,}",
            f"{r['lowest']:,}-{r['highest']:,}",
            f"{r['times_stock']:g}",
            f"{r['of_empty_tables']:.0%}",
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
