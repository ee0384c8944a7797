"""`procjobs bench`: runs the contenders, prints the tables, keeps the figures, writes the documentation's part."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console

from procjobs.bench.chart import chart
from procjobs.bench.databases import Databases, server
from procjobs.bench.environments import Environments
from procjobs.bench.machine import describe
from procjobs.bench.report import as_json, markdown, tables
from procjobs.bench.run import MEASURES, Run

__all__ = ["bench"]

_QUICK = ("Procrastinate, concurrency 10, 1 process", "procjobs, concurrency 10, 1", "procjobs, concurrency 500, 1")
_PRIVATE = ("--dsn", "--bindir", "--save", "--page")
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--dsn", help="A database of a server where databases may be created; default: an embedded PostgreSQL.")
@click.option("--bindir", type=click.Path(exists=True, path_type=Path), help="Another PostgreSQL's programs to embed.")
@click.option("--rounds", default=3, show_default=True, help="How often everything is measured.")
@click.option("--quick", is_flag=True, help="One small round of Procrastinate and procjobs, in under half a minute.")
@click.option("--only", multiple=True, help="Contenders whose name has this in it; may be given again.")
@click.option(
    "--measure", "measures", multiple=True, type=click.Choice(MEASURES), help="Only this; may be given again."
)
@click.option("--seed", default=1, show_default=True, help="Of the order within a round.")
@click.option("--json", "json_wanted", is_flag=True, help="Print JSON instead of tables.")
@click.option("--save", type=_FILE, help="Write the figures as JSON to this file too.")
@click.option("--page", type=_FILE, help="Put the tables between the marks of this page, and the chart beside it.")
def bench(
    dsn: str | None, bindir: Path | None, rounds: int, quick: bool, only: tuple[str, ...], measures: tuple[str, ...],
    seed: int, json_wanted: bool, save: Path | None, page: Path | None,
) -> int:  # fmt: skip
    """Measure procjobs beside Procrastinate and other queues, which it installs for itself, in one run."""
    progress = Console(stderr=True)
    with server(dsn, bindir) as running:
        databases = Databases(running)
        try:
            run = Run(
                databases,
                Environments(),
                1 if quick else rounds,
                measures or (MEASURES[:1] if quick else MEASURES),
                only or (_QUICK if quick else ()),
                0.1 if quick else 1.0,
                seed,
                lambda words: progress.print(words, style="dim", highlight=False),
            )
            figures = run.all()
            about = {**describe(running, bindir), "rounds": str(run.rounds), "seed": str(seed)}
        finally:
            databases.close()
    about["command"] = _command(sys.argv[1:])
    if save is not None:
        save.write_text(json.dumps(as_json(figures, about), indent=2) + "\n")
    if page is not None:
        page.write_text(markdown(page.read_text(), figures, about))
        image = page.parent / "images" / "benchmark.svg"
        image.parent.mkdir(exist_ok=True)
        image.write_text(chart(figures))
    if json_wanted:
        click.echo(json.dumps(as_json(figures, about), indent=2))
    else:
        for table in tables(figures, about):
            Console(width=None if sys.stdout.isatty() else 140).print(table)
    return 0


def _command(arguments: list[str]) -> str:
    """What to run to measure the same: without where it was written to, and without anybody's DSN."""
    kept = []
    private = False
    for argument in arguments:
        name, given, _ = argument.partition("=")
        if not private and name not in _PRIVATE:
            kept.append(argument)
        private = name in _PRIVATE and not given
    return " ".join(["procjobs", *kept])
