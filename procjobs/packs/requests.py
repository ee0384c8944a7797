"""Requests of e-mails: what an application calls while somebody waits for an answer. SQL decides; nothing is sent here.

queued = await app.notify_async(recipient, {"subject": "Dinner", "body": "At seven."})
return JSONResponse(queued.response(), status_code=queued.status_code)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NoReturn
from uuid import UUID

from procrastinate.connector import BaseConnector
from procrastinate.exceptions import ConnectorException

from procjobs.db import Calls, call_query
from procjobs.engine.arguments import encode
from procjobs.errors import DatabaseUnavailable, QueueUnavailable, cause_of

__all__ = ["InviteQueued", "Queued", "Requests", "submit_invite", "submit_notification"]

_MONTH = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """A notification that waits to be sent.

    job_id:       its row in procjobs.notification_jobs.
    message_id:   the left side of its mail's Message-ID; other delivery methods carry it as their message's id.
    queue_job_id: the job that sends it, for `app.wait_for`, `procjobs.cancel` and the like.
    Where an invitation was open already, these are None if the mail of then is forgotten.
    """

    message_id: str | None
    job_id: UUID | None
    queue_job_id: int | None
    status: Literal["queued"] = "queued"
    message: str = "The notification is queued and will be sent in the background."

    @property
    def status_code(self) -> int:
        """For the answer to an HTTP request: accepted, not done."""
        return 202

    def response(self) -> dict[str, Any]:
        """The body of that answer, as JSON has it."""
        return {
            "success": True,
            "messageId": self.message_id,
            "jobId": None if self.job_id is None else str(self.job_id),
            "status": self.status,
            "statusCode": self.status_code,
            "message": self.message,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteQueued(Queued):
    """An invitation whose mail waits to be sent.

    created: False where one was open for that address and role: this is that one, and its mail.
    """

    invite_id: UUID
    created: bool = True

    def response(self) -> dict[str, Any]:
        """The same with the invitation's id."""
        return {**Queued.response(self), "inviteId": str(self.invite_id), "created": self.created}


def _invite_queued(row: Mapping[str, Any]) -> InviteQueued:
    new = "The invitation is queued and will be sent in the background."
    old = "An invitation for this address is open already; no second one is sent."
    return InviteQueued(**row, message=new if row["created"] else old)


async def submit_notification(db: Calls, **arguments: Any) -> Queued:
    """procjobs.submit_notification over a pool of our own. Raises what `Requests.notify_async` does."""
    return Queued(**await _submitted(db, "submit_notification", arguments))


async def submit_invite(db: Calls, **arguments: Any) -> InviteQueued:
    """procjobs.submit_invite over a pool of our own. Raises what `Requests.invite_async` does."""
    return _invite_queued(await _submitted(db, "submit_invite", arguments))


async def _submitted(db: Calls, function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = await db.row(function, **arguments)
    except DatabaseUnavailable as error:
        raise QueueUnavailable(error) from error
    return found


def _refuse(error: ConnectorException) -> NoReturn:
    found = cause_of(error)
    if found is None:
        raise error
    raise QueueUnavailable(found) if isinstance(found, DatabaseUnavailable) else found from error


class Requests:
    """What every procjobs.App has: notifications and invitations through its connector, as its tasks are deferred."""

    connector: BaseConnector

    async def notify_async(
        self, recipient: UUID | str, content: Mapping[str, Any], *, connection: Any = None, **options: Any
    ) -> Queued:
        """Queue a notification to a recipient (host_recipients.id), by the channel that is asked for.

        content:    subject, body, preview, action_label, action_url: see docs/sql.md.
        options:    group, update (ids), notification_type ("immediate"), urgency (urgent, normal, low),
                    delivery_method ("email"), delay_minutes (whole minutes, 0), requested_by: a person
                    (host_people.id) whose recipient it must be.
        connection: a psycopg connection: then it is queued in its transaction, and undone with it.
        Raises QueueUnavailable (503), InvalidNotification, UnknownRecipient, UnknownGroup, UnknownUpdate (400),
        NotificationNotAllowed (403); the code is their `status_code`.
        """
        return Queued(**await self._ask("submit_notification", _notification(recipient, content, options), connection))

    def notify(
        self, recipient: UUID | str, content: Mapping[str, Any], *, connection: Any = None, **options: Any
    ) -> Queued:
        """Sync version of `notify_async`."""
        return Queued(**self._ask_sync("submit_notification", _notification(recipient, content, options), connection))

    async def invite_async(
        self,
        organization: UUID | str,
        email: str,
        role: str,
        *,
        invited_by: UUID | str,
        expires_in: timedelta = _MONTH,
        connection: Any = None,
    ) -> InviteQueued:
        """Invite an address into an organization, and queue the mail; as `app.invites.create`, with what to answer.

        connection: a psycopg connection: then it is done in its transaction, and undone with it.
        Raises QueueUnavailable (503), InvalidInvite (400), InviteNotAllowed (403), InviteConflict (open with another
        role) and AlreadyMember (409); the code is their `status_code`.
        """
        arguments = _invite(organization, email, role, invited_by, expires_in)
        return _invite_queued(await self._ask("submit_invite", arguments, connection))

    def invite(
        self,
        organization: UUID | str,
        email: str,
        role: str,
        *,
        invited_by: UUID | str,
        expires_in: timedelta = _MONTH,
        connection: Any = None,
    ) -> InviteQueued:
        """Sync version of `invite_async`."""
        arguments = _invite(organization, email, role, invited_by, expires_in)
        return _invite_queued(self._ask_sync("submit_invite", arguments, connection))

    async def _ask(self, function: str, arguments: dict[str, Any], connection: Any) -> dict[str, Any]:
        query = call_query(function, list(arguments))
        connector: Any = self.connector
        try:
            if connection is None:
                found = await connector.execute_query_one_async(query, **arguments)
            else:
                found = await connector.execute_query_one_async_with_connection(connection, query, **arguments)
        except ConnectorException as error:
            _refuse(error)
        return dict(found)

    def _ask_sync(self, function: str, arguments: dict[str, Any], connection: Any) -> dict[str, Any]:
        query = call_query(function, list(arguments))
        connector: Any = self.connector.get_sync_connector()
        try:
            if connection is None:
                found = connector.execute_query_one(query, **arguments)
            else:
                found = connector.execute_query_one_with_connection(connection, query, **arguments)
        except ConnectorException as error:
            _refuse(error)
        return dict(found)


def _notification(recipient: UUID | str, content: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as any connector's driver can pass them: texts."""
    unknown = options.keys() - _OPTIONS
    if unknown:
        raise TypeError(f"notify() has no option {', '.join(sorted(unknown))}; there are {', '.join(sorted(_OPTIONS))}")
    given = {name: str(value) if isinstance(value, UUID) else value for name, value in options.items()}
    text = encode("procjobs.send_notification", dict(content))
    return {"recipient": str(recipient), "content": text, **given}


_OPTIONS = frozenset(
    {"group", "update", "notification_type", "urgency", "delivery_method", "delay_minutes", "requested_by"}
)


def _invite(
    organization: UUID | str, email: str, role: str, invited_by: UUID | str, expires_in: timedelta
) -> dict[str, Any]:
    return {
        "organization": str(organization),
        "email": email,
        "role": role,
        "invited_by": str(invited_by),
        "expires_in": expires_in,
    }
