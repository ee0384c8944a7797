"""The demo is a small living application, the same everywhere, and seeding it again changes nothing."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

import pytest

from procjobs import demo
from procjobs.db import Database
from procjobs.errors import HostBindingMissing


async def test_the_facts_name_things_that_belong_together(db: Database, sql: Any) -> None:
    facts = await demo.seed(db)

    assert sql(
        """
        select r.owner_id, g.organization_id, m.role, a.is_admin
        from procjobs.host_recipients r
        join procjobs.host_group_recipients gr on gr.recipient_id = r.id
        join procjobs.host_groups g on g.id = gr.group_id
        join procjobs.host_memberships m on m.organization_id = g.organization_id and m.person_id = r.owner_id
        join procjobs.host_people a on a.id = %s
        where r.id = %s and g.id = %s
        """,
        facts.admin_id,
        facts.recipient_id,
        facts.group_id,
    ) == [(facts.user_id, facts.organization_id, "admin", True)]


async def test_seeding_again_changes_nothing_and_sends_nothing(db: Database, sql: Any) -> None:
    def rows() -> list[tuple[Any, ...]]:
        tables = sql("select format('%I.%I', schemaname, tablename) from pg_tables where schemaname = 'procjobs_demo'")
        return sorted(
            (table, *row)
            for (table,) in [*tables, ("procjobs.notification_jobs",), ("public.procrastinate_jobs",)]
            for row in sql(f"select to_jsonb(t)::text from {table} t")
        )

    first = await demo.seed(db)
    before = rows()
    assert await demo.seed(db) == first
    assert rows() == before


async def test_every_binding_has_something_to_show(db: Database, sql: Any) -> None:
    await demo.seed(db)
    views = [row[0] for row in sql("select object from procjobs.list_host_bindings() where kind = 'view'")]
    empty = [view for view in views if not sql.one(f"select count(*) from procjobs.{view}")]
    assert (len(views), empty) == (17, [])


async def test_people_live_in_several_zones_that_exist(db: Database, sql: Any) -> None:
    await demo.seed(db)
    zones = {zone for (zone,) in sql("select timezone from procjobs.host_recipients")}
    assert len({ZoneInfo(zone) for zone in zones}) >= 5


async def test_there_is_mail_for_now_and_for_later_the_first_time(db: Database, sql: Any) -> None:
    await demo.seed(db)
    assert sql(
        """
        select n.urgency, n.scheduled_for > n.created_at, n.status, j.status::text
        from procjobs.notification_jobs n
        join public.procrastinate_jobs j on j.id = n.job_id
        order by 2, n.urgency
        """
    ) == [
        ("low", False, "pending", "todo"),
        ("normal", False, "pending", "todo"),
        ("urgent", False, "pending", "todo"),
        ("normal", True, "pending", "todo"),
    ]


async def test_no_address_of_the_demo_can_reach_anybody(db: Database, sql: Any) -> None:
    await demo.seed(db)
    addresses = [address for (address,) in sql("select email from procjobs.host_recipients")]
    assert addresses
    assert [address for address in addresses if not address.endswith(".example")] == []  # RFC 2606


@pytest.mark.parametrize(
    "bound",
    [
        "drop schema procjobs_demo cascade",
        "drop view procjobs.host_recipients",
        (
            "create or replace view procjobs.host_recipients as select id, id as owner_id, name,"
            " null::text as relationship, email, phone, timezone, null::text as slack, null::text as webhook_url"
            " from procjobs.host_people"
        ),
    ],
    ids=["no tables", "no view", "its own view"],
)
async def test_a_database_with_bindings_of_its_own_is_not_seeded(db: Database, sql: Any, bound: str) -> None:
    sql(bound)
    with pytest.raises(HostBindingMissing, match="no demo tables") as refused:
        await demo.seed(db)
    assert "--no-demo" in (refused.value.hint or "")
