"""mail: what the mail catcher of `procjobs up` has kept, what mails look like, and who gets none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from procjobs.cli.database import load_settings
from procjobs.cli.letters import preview, suppressed
from procjobs.cli.output import Column, json_option, print_facts, print_json, print_table, text, when
from procjobs.logs import one_line

if TYPE_CHECKING:
    from procjobs.mailcatcher import Mailbox

__all__ = ["mail"]

T = TypeVar("T")

_MAILS: tuple[Column, ...] = (
    ("id", "id", text),
    ("at", "at", when),
    ("from", "sender", text),
    ("to", "recipients", text),
    ("subject", "subject", text),
)

data_option = click.option("--data", metavar="DIR", help="Data folder of `procjobs up`.  [default: .procjobs]")
limit_option = click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most."
)


@click.group(invoke_without_command=True, short_help="Mails that were caught, templates, addresses that get none.")
@limit_option
@json_option
@data_option
@click.pass_context
def mail(context: click.Context, /, limit: int, as_json: bool, data: str | None) -> None:
    """List the mails that the mail catcher kept, show one; preview templates; list addresses to which none goes."""
    if context.invoked_subcommand is None:
        _list(limit, as_json, data)


@mail.command("list")
@limit_option
@json_option
@data_option
def list_mails(limit: int, as_json: bool, data: str | None) -> None:
    """The mails, newest first."""
    _list(limit, as_json, data)


@mail.command()
@click.argument("mail_id", metavar="ID")
@click.option("--raw", is_flag=True, help="Print the mail as it came.")
@json_option
@data_option
def show(mail_id: str, raw: bool, as_json: bool, data: str | None) -> None:
    """Show the mail ID, or the newest one (ID `last`)."""
    from procjobs.mailcatcher import text_of

    box = _mailbox(data)
    if mail_id == "last":
        mail_id = next((found.id for found in box.list(1)), mail_id)
    if raw:
        click.echo(_found(box.raw(mail_id), mail_id), nl=False)
        return
    found = _found(box.read(mail_id), mail_id)
    if as_json:
        print_json(found)
        return
    summary = found.summary
    print_facts(
        (
            ("From", summary.sender),
            ("To", summary.recipients),
            ("Subject", summary.subject),
            ("At", when(summary.at)),
            ("Attachments", ", ".join(found.attachments)),
        )
    )
    click.echo("")
    for line in text_of(found).splitlines():
        click.echo(one_line(line))


mail.add_command(preview)
mail.add_command(suppressed)


def _list(limit: int, as_json: bool, data: str | None) -> None:
    found = _mailbox(data).list(limit)
    if as_json:
        print_json(found)
    else:
        rows = [{name: getattr(summary, name) for name in summary.__slots__} for summary in found]
        print_table(rows, _MAILS, empty="No mail yet.")


def _mailbox(data: str | None) -> Mailbox:
    from procjobs.errors import ProcjobsError
    from procjobs.facts import mailbox_of
    from procjobs.mailcatcher import Mailbox

    path = mailbox_of(Path(load_settings(data=data).data))
    if not path.is_dir():
        raise ProcjobsError(
            f"there is no mailbox in {path.parent}", hint="start `procjobs up`, or name its folder with --data"
        )
    return Mailbox(path)


def _found(mail: T | None, mail_id: str) -> T:
    from procjobs.errors import ProcjobsError

    if mail is None:
        raise ProcjobsError(f"there is no mail {mail_id}", hint="`procjobs mail` lists them")
    return mail
