"""Invitations into organizations: the calls of an application, and what a link opens. SQL decides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID

from procjobs.db import Calls

__all__ = ["Acceptance", "Invite", "InviteAnswer", "Invites", "Look", "accept", "look", "register_url"]

_MONTH = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Invite:
    """An invitation, as `procjobs.invites` shows it.

    status: PENDING, SENT, ACCEPTED, FAILED, EXPIRED or REVOKED.
    """

    id: UUID
    organization_id: UUID
    email: str
    role: str
    invited_by: UUID
    status: str
    attempts: int
    max_attempts: int
    last_attempt: datetime | None
    error: str | None
    created_at: datetime
    updated_at: datetime
    expires_at: datetime
    accepted_at: datetime | None
    accepted_by: UUID | None
    notification_id: UUID | None


@dataclass(frozen=True, slots=True)
class InviteAnswer:
    """What became of one address of many. outcome: created, open, other_role, member or invalid."""

    email: str
    invite_id: UUID | None
    outcome: str
    problem: str | None


class Invites:
    """Invitations by hand: `app.invites`. Each call is one of the SQL functions of procjobs.

    People and organizations are the application's: ids of host_people and host_organizations.
    """

    def __init__(self, database: Callable[[], Awaitable[Calls]]) -> None:
        self._database = database

    async def create(
        self,
        organization: UUID | str,
        email: str,
        role: str,
        *,
        invited_by: UUID | str,
        expires_in: timedelta = _MONTH,
    ) -> UUID:
        """Invite an address; the mail follows through the queue. Returns the invitation's id.

        One that is open for that address and role is returned instead. Raises InvalidInvite, InviteNotAllowed,
        InviteConflict (open with another role), AlreadyMember.
        """
        found: UUID = await self._call(
            "create_invite",
            organization=organization,
            email=email,
            role=role,
            invited_by=invited_by,
            expires_in=expires_in,
        )
        return found

    async def create_many(
        self,
        organization: UUID | str,
        emails: Iterable[str],
        role: str,
        *,
        invited_by: UUID | str,
        expires_in: timedelta = _MONTH,
    ) -> list[InviteAnswer]:
        """Invite up to 1000 addresses, each with an answer of its own. Raises InvalidInvite, InviteNotAllowed."""
        return await (await self._database()).rows(
            "create_invites",
            as_=InviteAnswer,
            organization=organization,
            emails=list(emails),
            role=role,
            invited_by=invited_by,
            expires_in=expires_in,
        )

    async def resend(
        self, invite: UUID | str, *, by: UUID | str | None = None, expires_in: timedelta = _MONTH
    ) -> datetime:
        """Send it again with a new link; links sent before are dead. Returns until when it is open.

        by: who asks, if that is to be checked. Raises InviteNotFound, InviteNotAllowed, InviteConflict.
        """
        found: datetime = await self._call("resend_invite", invite=invite, resent_by=by, expires_in=expires_in)
        return found

    async def revoke(self, invite: UUID | str, *, by: UUID | str | None = None) -> bool:
        """Withdraw it. False if it was already. Raises InviteNotFound, InviteNotAllowed, InviteConflict."""
        return bool(await self._call("revoke_invite", invite=invite, revoked_by=by))

    async def list(
        self, organization: UUID | str | None = None, *, status: str | None = None, limit: int = 50
    ) -> list[Invite]:
        """Invitations, newest first."""
        return await (await self._database()).rows(
            "list_invites", as_=Invite, organization=organization, in_status=status, max_rows=limit
        )

    async def _call(self, function: str, **arguments: Any) -> Any:
        return await (await self._database()).value(function, **arguments)


# What a link opens


@dataclass(frozen=True, slots=True)
class Look:
    """What a link leads to, as `procjobs.peek_invite` says; fields are None where there is nothing to tell."""

    state: str
    invite_id: UUID | None
    organization_id: UUID | None
    organization: str | None
    inviter: str | None
    email: str | None
    role: str | None
    expires_at: datetime | None
    accepted_at: datetime | None
    person_id: UUID | None
    person_name: str | None
    timezone: str | None


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What became of an acceptance. state: accepted, or one of those of `Look` other than open."""

    state: str
    invite_id: UUID | None
    organization_id: UUID | None
    person_id: UUID | None
    role: str | None


async def look(db: Calls, token: str) -> Look:
    """What the link that ends in `token` leads to. Changes nothing."""
    found: Look = await db.row("peek_invite", as_=Look, token_hash=_hash(token))
    return found


async def accept(db: Calls, token: str) -> Acceptance:
    """Accept for whoever has the invited address, once."""
    found: Acceptance = await db.row("accept_invite", as_=Acceptance, token_hash=_hash(token))
    return found


async def register_url(db: Calls, token: str, continue_at: str) -> str | None:
    """Where who is invited and has no account registers, going on to `continue_at` and the token.

    PostgreSQL is asked with another word in the token's place, which is replaced here: so statements that it logs hold
    nothing that opens an invitation. Only an application that encodes the address in a way of its own is given it.
    """
    place = "token-of-this-invitation"
    url: str | None = await db.value(
        "invite_register_url", token_hash=_hash(token), continue_at=f"{continue_at}{place}"
    )
    if url is None or place in url:
        return url and url.replace(place, token)
    found: str | None = await db.value(
        "invite_register_url", token_hash=_hash(token), continue_at=f"{continue_at}{token}"
    )
    return found


def _hash(token: str) -> bytes:
    return sha256(token.encode()).digest()
