"""The demo: a small made-up organization in the schema procjobs_demo, alive as soon as `procjobs up` has started."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from procjobs.db import Calls

__all__ = ["DemoFacts", "seed"]


@dataclass(frozen=True, slots=True)
class DemoFacts:
    """Identifiers of the demo to try things with; the same in every database.

    user_id owns recipient_id (may see what is sent to it), recipient_id receives what group_id shares,
    and admin_id may operate procjobs.
    """

    recipient_id: UUID
    group_id: UUID
    organization_id: UUID
    user_id: UUID
    admin_id: UUID


async def seed(db: Calls) -> DemoFacts:
    """Fill the demo tables, all in one transaction; what is there already stays as it is.

    The first time, a few notifications are enqueued too. Raises HostBindingMissing where host.sql binds
    an application's own tables, so that there are no demo tables.
    """
    facts: DemoFacts = await db.row("seed_demo", as_=DemoFacts)
    return facts
