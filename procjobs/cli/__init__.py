"""The command `procjobs`.

Modules here import at their top only what is needed to show help; commands import what they run.
Whatever goes wrong is told in one sentence with the mend on standard error: exit code 1, or 2 for a wrong call.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from procjobs import __version__
from procjobs.cli import (
    breakers,
    dead,
    digests,
    invites,
    jobs,
    limits,
    mail,
    pg_cron,
    queues,
    reminders,
    retention,
    schedules,
    services,
    setup,
    tasks,
    tools,
)

__all__ = ["cli", "main"]


class Sections(click.Group):
    """A group that lists its commands by section, in the order in which one meets them."""

    sections: tuple[tuple[str, tuple[click.Command, ...]], ...] = (
        ("Run", (services.up, services.worker, services.scheduler, services.web)),
        ("Set up", (setup.init, setup.migrate, setup.check, tools.doctor, pg_cron.pg_cron)),
        (
            "Jobs",
            (
                jobs.defer,
                jobs.jobs,
                queues.queues,
                tasks.tasks,
                queues.workers,
                limits.limits,
                limits.batches,
                breakers.breakers,
                dead.dead,
                retention.retention,
            ),
        ),
        ("Schedules", (schedules.schedules, schedules.run, schedules.alerts)),
        ("Messages", (mail.mail, breakers.deliveries, digests.digests, invites.invites, reminders.reminders)),
        ("Tools", (tools.psql, tools.bench, tools.completion)),
    )

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [command.name or "" for _, commands in self.sections for command in commands]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(len(name) for name in self.list_commands(ctx))
        for title, commands in self.sections:
            rows = [
                (f"{command.name:<{width}}", command.get_short_help_str(formatter.width - width - 6))
                for command in commands
            ]
            with formatter.section(title):
                formatter.write_dl(rows)


@click.group(cls=Sections, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="procjobs %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_obj
def cli(told: dict[str, bool], debug: bool) -> None:
    """Background jobs, schedules and their history in your PostgreSQL.

    \b
    procjobs up            everything on this machine, nothing to configure
    procjobs worker        run jobs of the database in DATABASE_URL
    """
    told["debug"] = debug


for _, _commands in Sections.sections:
    for _command in _commands:
        cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong call, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    told = {"debug": False}
    try:
        result = cli.main(args=arguments, prog_name="procjobs", standalone_mode=False, obj=told)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stdout = None  # the reader left; do not fail once more at exit
        return 1
    except Exception as error:
        if told["debug"]:
            raise
        return _complain(error)
    return result if isinstance(result, int) else 0


def _complain(error: Exception) -> int:
    from procjobs.cli.extras import missing

    text = missing(error) if isinstance(error, ImportError) else None
    if text is None:
        from procjobs.cli.complaint import sentence

        text = sentence(error)
    click.echo(f"procjobs: {text}", err=True)
    return 1
