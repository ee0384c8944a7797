"""invites: invitations into organizations."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

import click

from procjobs.cli.database import call, database_options
from procjobs.cli.output import Column, json_option, print_facts, print_json, print_table, text, when
from procjobs.cli.values import Span

__all__ = ["invites"]

_INVITES: tuple[Column, ...] = (
    ("id", "id", text),
    ("email", "email", text),
    ("role", "role", text),
    ("status", "status", text),
    ("tries", "attempts", text),
    ("created", "created_at", when),
    ("expires", "expires_at", when),
    ("error", "error", text),
)
_ANSWERS: tuple[Column, ...] = (
    ("email", "email", text),
    ("outcome", "outcome", text),
    ("id", "invite_id", text),
    ("problem", "problem", text),
)
_FACTS = (
    ("Invitation", "id", text),
    ("Address", "email", text),
    ("Role", "role", text),
    ("Organization", "organization_id", text),
    ("Invited by", "invited_by", text),
    ("Status", "status", text),
    ("Tries", "attempts", text),
    ("Last try", "last_attempt", when),
    ("Error", "error", text),
    ("Created", "created_at", when),
    ("Expires", "expires_at", when),
    ("Accepted", "accepted_at", when),
    ("Accepted by", "accepted_by", text),
    ("Letter", "notification_id", text),
)

by_option = click.option("--by", metavar="PERSON", type=click.UUID, help="Who does it, by id; must be allowed to.")
expires_option = click.option("--expires-in", type=Span(), metavar="SPAN", help="Open for so long.  [default: 30d]")
organization_option = click.option("--organization", type=click.UUID, metavar="ID", help="Into this one only.")
status_option = click.option(
    "--status",
    type=click.Choice(["PENDING", "SENT", "ACCEPTED", "FAILED", "EXPIRED", "REVOKED"], case_sensitive=False),
    help="In this state only.",
)
limit_option = click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, help="At most that many.  [default: 50]"
)


@click.group(invoke_without_command=True, short_help="List invitations; create, send again, revoke them.")
@organization_option
@status_option
@limit_option
@json_option
@database_options
@click.pass_context
def invites(
    context: click.Context,
    /,
    dsn: str | None,
    data: str | None,
    as_json: bool,
    organization: UUID | None,
    status: str | None,
    limit: int,
) -> None:
    """List invitations into organizations; create, send again, revoke them."""
    if context.invoked_subcommand is None:
        _list(dsn, data, as_json, organization, status, limit)


@invites.command("list")
@organization_option
@status_option
@limit_option
@json_option
@database_options
def list_invites(
    dsn: str | None, data: str | None, as_json: bool, organization: UUID | None, status: str | None, limit: int
) -> None:
    """Invitations, newest first."""
    _list(dsn, data, as_json, organization, status, limit)


def _list(
    dsn: str | None, data: str | None, as_json: bool, organization: UUID | None, status: str | None, limit: int
) -> None:
    found = call(dsn, data, "list_invites", organization=organization, in_status=status, max_rows=limit)
    if as_json:
        print_json(found)
    else:
        print_table(found, _INVITES, empty="There is no invitation.")


@invites.command()
@click.argument("organization", type=click.UUID)
@click.argument("emails", metavar="EMAIL...", nargs=-1, required=True)
@click.option("--role", required=True, help="What they become there, a role of the application.")
@click.option("--by", "person", metavar="PERSON", type=click.UUID, required=True, help="Who invites, by id.")
@expires_option
@json_option
@database_options
def create(
    organization: UUID,
    emails: tuple[str, ...],
    role: str,
    person: UUID,
    expires_in: str | None,
    as_json: bool,
    dsn: str | None,
    data: str | None,
) -> int:
    """Invite each EMAIL into ORGANIZATION; exit code 1 if one of them could not be."""
    given = {} if expires_in is None else {"expires_in": expires_in}
    found = call(
        dsn,
        data,
        "create_invites",
        organization=organization,
        emails=list(emails),
        role=role,
        invited_by=person,
        **given,
    )
    if as_json:
        print_json(found)
    else:
        print_table(found, _ANSWERS, empty="")
    counts = Counter(row["outcome"] for row in found)
    return 0 if counts["created"] + counts["open"] == len(found) else 1


@invites.command()
@click.argument("invite", metavar="ID", type=click.UUID)
@by_option
@expires_option
@database_options
def resend(invite: UUID, by: UUID | None, expires_in: str | None, dsn: str | None, data: str | None) -> None:
    """Send the invitation ID again, with a new link; links sent before are dead."""
    given = {} if expires_in is None else {"expires_in": expires_in}
    (row,) = call(dsn, data, "resend_invite", invite=invite, resent_by=by, **given)
    click.echo(f"invitation {invite} is sent again, open until {when(row['resend_invite'])}")


@invites.command()
@click.argument("invite", metavar="ID", type=click.UUID)
@by_option
@database_options
def revoke(invite: UUID, by: UUID | None, dsn: str | None, data: str | None) -> None:
    """Withdraw the invitation ID: its links are dead."""
    (row,) = call(dsn, data, "revoke_invite", invite=invite, revoked_by=by)
    click.echo(f"invitation {invite} {'is revoked' if row['revoke_invite'] else 'was revoked already'}")


@invites.command()
@click.argument("invite", metavar="ID", type=click.UUID)
@json_option
@database_options
def show(invite: UUID, as_json: bool, dsn: str | None, data: str | None) -> None:
    """Show everything about the invitation ID but its link, which nobody knows except who got the mail."""
    from procjobs.errors import InviteNotFound

    found = call(dsn, data, "list_invites", invite=invite)
    if not found:
        raise InviteNotFound(f"there is no invitation {invite}", hint="`procjobs invites` lists them")
    if as_json:
        print_json(found[0])
    else:
        print_facts([(title, show_as(found[0][key])) for title, key, show_as in _FACTS])
