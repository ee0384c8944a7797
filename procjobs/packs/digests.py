"""Digests: who gets one of what, and when. SQL decides (`procjobs.create_digest_jobs`); here is how Python says it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from typing import Any
from uuid import UUID

from procjobs.db import Calls
from procjobs.errors import DigestNotFound

__all__ = ["DigestRun", "DigestSchedule", "Digests"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestSchedule:
    """Who gets a digest of what, and when. `timezone` is what was said, `zone` what counts."""

    id: UUID
    recipient_id: UUID
    recipient_name: str | None
    group_id: UUID | None
    group_name: str | None
    frequency: str
    delivery_time: time
    timezone: str | None
    zone: str
    day_of_week: int | None
    day_of_month: int | None
    delivery_day: int | None
    max_updates_per_digest: int
    include_content_types: list[str] | None
    delivery_method: str
    is_active: bool
    last_digest_at: datetime | None
    next_digest_scheduled: datetime
    last_outcome: str | None
    last_reason: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestRun:
    """What came of one digest: created, empty, muted, unreachable or gone; and of its mail."""

    id: int
    schedule_id: UUID
    recipient_id: UUID
    recipient_name: str | None
    group_id: UUID | None
    group_name: str | None
    frequency: str
    slot: datetime
    ran_at: datetime
    outcome: str
    reason: str | None
    updates: int
    left_out: int
    notification_id: UUID | None
    mail_status: str | None
    mail_error: str | None


class Digests:
    """The digests of one database: `app.digests`.

    `owner`, where given, is the person (host_people.id) who asks: only digests for recipients of theirs are seen.
    """

    def __init__(self, database: Callable[[], Awaitable[Calls]]) -> None:
        self._database = database

    async def create(
        self,
        recipient: UUID,
        frequency: str,
        *,
        group: UUID | None = None,
        delivery_time: time | str | None = None,
        timezone: str | None = None,
        day_of_week: int | None = None,
        day_of_month: int | None = None,
        delivery_day: int | None = None,
        max_updates_per_digest: int | None = None,
        include_content_types: Sequence[str] | None = None,
        delivery_method: str | None = None,
        is_active: bool | None = None,
        owner: UUID | None = None,
    ) -> DigestSchedule:
        """Let a recipient have a digest of a group's updates; of all groups without one.

        frequency:              daily, weekly, monthly.
        delivery_time:          local time, "09:00" without it.
        timezone:               IANA zone; the recipient's without it.
        day_of_week:            1 Monday to 7 Sunday. day_of_month: 1 to 31, in shorter months the last day.
        delivery_day:           either of them, as the frequency is.
        max_updates_per_digest: the newest so many, 10 without it.
        include_content_types:  only these kinds of updates.
        Raises InvalidDigest, DuplicateDigest, UnknownRecipient, UnknownGroup.
        """
        options = {
            "delivery_time": delivery_time.isoformat("seconds") if isinstance(delivery_time, time) else delivery_time,
            "timezone": timezone,
            "day_of_week": day_of_week,
            "day_of_month": day_of_month,
            "delivery_day": delivery_day,
            "max_updates_per_digest": max_updates_per_digest,
            "include_content_types": include_content_types and list(include_content_types),
            "delivery_method": delivery_method,
            "is_active": is_active,
        }
        given = {name: value for name, value in options.items() if value is not None}
        calls = await self._database()
        made = await calls.value(
            "create_digest_schedule", recipient=recipient, frequency=frequency, group=group, owner=owner, **given
        )
        return await self.get(made, owner=owner)

    async def update(self, digest: UUID, *, owner: UUID | None = None, **changes: Any) -> DigestSchedule:
        """Change what is given, and nothing else. Raises DigestNotFound, InvalidDigest, DuplicateDigest."""
        if isinstance(changes.get("delivery_time"), time):
            changes["delivery_time"] = changes["delivery_time"].isoformat("seconds")
        calls = await self._database()
        await calls.value("update_digest_schedule", id=digest, changes=json.dumps(changes), owner=owner)
        return await self.get(digest, owner=owner)

    async def delete(self, digest: UUID, *, owner: UUID | None = None) -> bool:
        """Remove one; what came of its digests stays. False if there was none."""
        return bool(await (await self._database()).value("delete_digest_schedule", id=digest, owner=owner))

    async def get(self, digest: UUID, *, owner: UUID | None = None) -> DigestSchedule:
        """One of them. Raises DigestNotFound."""
        found = await (await self._database()).rows(
            "list_digest_schedules", as_=DigestSchedule, p_id=digest, p_owner=owner
        )
        if not found:
            raise DigestNotFound(f"there is no digest schedule {digest}", hint="procjobs digests lists them")
        schedule: DigestSchedule = found[0]
        return schedule

    async def runs(
        self, digest: UUID | None = None, *, recipient: UUID | None = None, owner: UUID | None = None, limit: int = 50
    ) -> list[DigestRun]:
        """What came of digests, newest first."""
        return await (await self._database()).rows(
            "list_digest_runs", as_=DigestRun, p_schedule=digest, p_recipient=recipient, p_owner=owner, p_limit=limit
        )

    async def list(
        self,
        *,
        recipient: UUID | None = None,
        group: UUID | None = None,
        frequency: str | None = None,
        active: bool | None = None,
        owner: UUID | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[DigestSchedule]:
        """Those that match, newest first."""
        return await (await self._database()).rows(
            "list_digest_schedules",
            as_=DigestSchedule,
            p_recipient=recipient,
            p_group=group,
            p_frequency=frequency,
            p_active=active,
            p_owner=owner,
            p_limit=limit,
            p_offset=offset,
        )
