"""Host bindings: a contract that is documented, checked when host.sql is applied, and met by tables of any shape."""

from __future__ import annotations

import re
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from procjobs import demo
from procjobs.db import Database
from procjobs.errors import HostBindingMissing, MigrationError, translate
from procjobs.letters import Brand, sample
from procjobs.mail import Mailer, Sent
from procjobs.migrate import migrate
from procjobs.packs.notifications import deliver
from procjobs.settings import Settings
from tests.mail_server import MailServer

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "procjobs/templates/init"


@pytest.fixture
def host_sql(tmp_path: Path, dsn: str) -> Any:
    """Applies a host.sql of this text, as an application would: `procjobs migrate`."""

    def apply(text: str) -> None:
        path = tmp_path / "host.sql"
        path.write_text(text, encoding="utf-8")
        migrate(dsn, host_sql=path)

    return apply


def template() -> str:
    return (TEMPLATES / "host.sql").read_text(encoding="utf-8")


# The contract


def test_every_binding_and_column_is_documented(sql: Any) -> None:
    page = (ROOT / "docs/host-bindings.md").read_text(encoding="utf-8")
    missing = [
        (object_, part)
        for object_, kind, ord_, part, type_, meaning in sql(
            "select object, kind, ord, part, type, meaning from procjobs.host_contract()"
        )
        if (f"| `{part}` | {type_} | {meaning} |" if ord_ else f"`{object_}" if kind == "view" else meaning) not in page
    ]
    assert missing == []


def test_what_needs_a_binding_is_said_the_same_everywhere(sql: Any) -> None:
    page = (ROOT / "docs/host-bindings.md").read_text(encoding="utf-8")
    for object_, kind, needed in sql("select object, kind, needed_for from procjobs.list_host_bindings()"):
        above = rf"-- Needed for: {re.escape(needed)}\.\ncreate or replace {kind} procjobs\.{object_}\b"
        assert re.search(above, template()), object_
        listed = rf"### `{object_}`\n\n[^\n]* Needed for: {re.escape(needed)}\.\n"
        assert re.search(listed if kind == "view" else rf"\| `{object_}\(.*\| {re.escape(needed)} \|\n", page), object_


def test_the_same_bindings_stand_in_the_catalog_the_template_and_the_documentation(sql: Any) -> None:
    contract = {(kind, name) for kind, name in sql("select kind, object from procjobs.list_host_bindings()")}
    catalog = sql(
        """
        select 'view', viewname::text from pg_views where schemaname = 'procjobs' and viewname like 'host\\_%'
        union all
        select 'function', proname::text
        from pg_proc
        where pronamespace = 'procjobs'::regnamespace
          and proname like 'host\\_%'
          and proname <> 'host_contract'
        """
    )
    written = re.findall(r"^create or replace (view|function) procjobs\.(host_\w+)", template(), re.MULTILINE)
    page = (ROOT / "docs/host-bindings.md").read_text(encoding="utf-8")
    listed = [("view", name) for name in re.findall(r"^### `(host_\w+)`$", page, re.MULTILINE)]
    listed += [("function", name) for name in re.findall(r"^\| `(host_\w+)\(.*\)` \|", page, re.MULTILINE)]
    for found in (catalog, written, listed):
        assert sorted(map(tuple, found)) == sorted(contract)
    of_invitations = "kind = 'function' and needed_for = 'invitations'"
    invitations = sql(f"select object from procjobs.list_host_bindings() where {of_invitations}")
    shown = re.findall(r"^\| `(host_\w+)\(.*\)` \|", (ROOT / "docs/invitations.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(shown) == sorted(name for (name,) in invitations)


def test_our_functions_read_nothing_of_the_application_but_what_is_bound(sql: Any) -> None:
    ours = "pronamespace = 'procjobs'::regnamespace and proname !~ '^(host_|demo_|seed_demo)'"
    bodies = sql.one(f"select string_agg(prosrc, ' ') from pg_proc where {ours}")
    bound = {name for (name,) in sql("select object from procjobs.list_host_bindings()")}
    assert set(re.findall(r"\bprocjobs\.(host_\w+)", bodies)) - bound == {"host_contract"}
    assert "procjobs_demo" not in bodies


def test_the_default_binds_everything(sql: Any) -> None:
    rows = sql("select object, kind, bound, problem from procjobs.list_host_bindings()")
    assert [row for row in rows if not row[2] or row[3]] == []
    assert [kind for _, kind, _, _ in rows].count("view") == 17
    assert [kind for _, kind, _, _ in rows].count("function") == 6


def test_every_host_object_and_column_has_a_comment_and_nothing_is_for_public(sql: Any) -> None:
    assert (
        sql(
            """
        select c.relname, a.attname
        from pg_class c
        join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
        where c.relnamespace = 'procjobs'::regnamespace
          and c.relname like 'host\\_%'
          and (col_description(c.oid, a.attnum) is null or obj_description(c.oid) is null)
        union all
        select p.proname, 'no comment, or for PUBLIC'
        from pg_proc p
        where p.pronamespace = 'procjobs'::regnamespace
          and p.proname like 'host\\_%'
          and (obj_description(p.oid, 'pg_proc') is null or p.proacl is null or p.proacl::text ~ '[{,]=')
        """
        )
        == []
    )


def test_nothing_of_ours_depends_on_a_host_view(sql: Any) -> None:
    sql("begin")
    try:
        for (view,) in sql("select object from procjobs.list_host_bindings() where kind = 'view'"):
            sql(f"drop view procjobs.{view} restrict")  # an error if anything did
    finally:
        sql("rollback")


# The default functions


@pytest.fixture
async def facts(db: Database) -> demo.DemoFacts:
    return await demo.seed(db)


def person(sql: Any, name: str) -> UUID:
    found: UUID = sql.one("select procjobs.demo_id(%s)", name)
    return found


def test_people_are_found_by_mail_in_any_case_of_letters(sql: Any, facts: demo.DemoFacts) -> None:
    assert sql.one("select procjobs.host_find_person(' Maya@HarbourLane.example ')") == facts.user_id
    assert sql.one("select procjobs.host_find_person('nobody@harbourlane.example')") is None


@pytest.mark.parametrize(
    ("inviter", "organization", "roles"),
    [
        ("tomas", "studio", ["owner", "admin", "member"]),
        ("maya", "studio", ["admin", "member"]),
        ("aiko", "studio", []),
        ("liam", "studio", []),
        ("maya", "press", []),
    ],
)
def test_roles_that_an_inviter_may_give(
    sql: Any, facts: demo.DemoFacts, inviter: str, organization: str, roles: list[str]
) -> None:
    query = "select procjobs.host_invitable_roles(procjobs.demo_id(%s), procjobs.demo_id(%s))"
    assert sql.one(query, inviter, organization) == roles


def test_a_removed_member_may_not_invite(sql: Any, facts: demo.DemoFacts) -> None:
    sql("update procjobs_demo.memberships set removed_at = now() where person_id = %s", facts.admin_id)
    found = sql.one("select procjobs.host_invitable_roles(%s, %s)", facts.admin_id, facts.organization_id)
    assert found == []


def test_adding_a_member_twice_at_once_adds_one(dsn: str, sql: Any, facts: demo.DemoFacts) -> None:
    def add(_: int) -> bool:
        with psycopg.connect(dsn, autocommit=True) as connection:
            row = connection.execute(
                "select procjobs.host_add_member(%s, %s, 'member')", (facts.organization_id, person(sql, "liam"))
            ).fetchone()
        return bool(row and row[0])

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(add, range(8))) == [False] * 7 + [True]
    assert sql.one("select count(*) from procjobs.host_memberships where person_id = %s", person(sql, "liam")) == 2


def test_a_member_keeps_the_role_and_a_removed_one_comes_back(sql: Any, facts: demo.DemoFacts) -> None:
    add = "select procjobs.host_add_member(%s, %s, 'member')"
    role = "select role from procjobs.host_memberships where organization_id = %s and person_id = %s"
    maya = (facts.organization_id, facts.user_id)
    assert (sql.one(add, *maya), sql.one(role, *maya)) == (False, "admin")
    sql("update procjobs_demo.memberships set removed_at = now() where person_id = %s", facts.user_id)
    assert (sql.one(add, *maya), sql.one(role, *maya)) == (True, "member")


def test_the_register_address_carries_any_mail_and_target(sql: Any) -> None:
    assert (
        sql.one("select procjobs.host_register_url('å+b&c@d.example', '/invite/x?y=1')")
        == "/register?email=%C3%A5%2Bb%26c%40d.example&continue=%2Finvite%2Fx%3Fy%3D1"
    )
    assert sql.one("select procjobs.url_encode('')") == ""


def test_muting_and_unmuting(sql: Any, facts: demo.DemoFacts) -> None:
    mute = "select procjobs.host_mute(%s, %s, %s)"
    pair = (facts.recipient_id, facts.group_id)
    muted = (
        "select muted_until = 'infinity' from procjobs.host_group_recipients where recipient_id = %s and group_id = %s"
    )
    assert [sql.one(mute, *pair, "infinity"), sql.one(mute, *pair, "infinity"), sql.one(muted, *pair)] == [
        True,
        False,
        True,
    ]
    assert [sql.one(mute, *pair, None), sql.one(muted, *pair)] == [True, None]
    assert sql.one(mute, uuid4(), facts.group_id, "infinity") is False


# A host.sql of the application's own


def test_the_template_runs_as_it_is(host_sql: Any, sql: Any) -> None:
    host_sql(template())
    rows = sql("select object, kind, bound, problem from procjobs.list_host_bindings()")
    assert [row for row in rows if not row[2] or row[3]] == []
    assert [view for view, kind, *_ in rows if kind == "view" and sql(f"select * from procjobs.{view}")] == []
    assert (
        sql.one("select procjobs.host_register_url('a@b.example', '/x')")
        == "/register?email=a%40b.example&continue=%2Fx"
    )


def test_the_template_names_every_column_with_its_meaning(sql: Any) -> None:
    lines = template().splitlines()
    for object_, part, type_, meaning in sql(
        "select object, part, type, meaning from procjobs.host_contract() where kind = 'view' and ord > 0"
    ):
        pattern = rf"  null::{re.escape(type_)} as {part},? +-- {re.escape(meaning)}"
        assert any(re.fullmatch(pattern, line) for line in lines), f"{object_}.{part}"


#: The made-up application of the template's examples.
EXAMPLE = """
create schema app;
create table app.users (id uuid, full_name text, email varchar(200), mobile text, tz text, slack_member text, role text,
  email_reports_enabled boolean, created_at timestamptz, last_seen timestamptz, deleted_at timestamptz);
create table app.organizations (id uuid, name text, logo text);
create type app.role as enum ('owner', 'admin', 'member');
create table app.members (organization_id uuid, user_id uuid, role text, created_at timestamptz, removed_at timestamptz,
  unique (organization_id, user_id));
create table app.channels (id uuid, organization_id uuid, title text);
create table app.subscribers (channel_id uuid, user_id uuid, muted_until timestamptz);
create table app.posts (id uuid, channel_id uuid, author_id uuid, kind text, title text, body text, picture_url text,
  created_at timestamptz);
create table app.post_reads (post_id uuid, user_id uuid, at timestamptz);
create table app.notifications (id uuid, user_id uuid, type text, title text, body text, link text,
  created_at timestamptz, read_at timestamptz);
create table app.events (id uuid, organization_id uuid, title text, starts_at timestamptz, ends_at timestamptz, tz text,
  place text, cancelled_at timestamptz);
create table app.attendances (event_id uuid, user_id uuid, answer text);
create table app.projects (id uuid, organization_id uuid, name text, currency text);
create table app.project_payment_status (project_id uuid, advance_paid_at timestamptz, balance numeric,
  balance_paid_at timestamptz);
create table app.project_team (project_id uuid, user_id uuid, is_primary_contact boolean);
create table app.subscriptions (id uuid, organization_id uuid, plan text, status text, price numeric, currency text,
  created_at timestamptz);
create table app.audit_logs (organization_id uuid, user_id uuid, action text, created_at timestamptz);
create table app.calendars (id uuid, family_id uuid, name text, ics_url text, tz text, enabled boolean);
create table app.calendar_members (calendar_id uuid, user_id uuid, google_calendar_id text, google_refresh_token text);
create table app.google_accounts (user_id uuid, access_token text, expires_at timestamptz);
create table app.files (id uuid, storage_key text, created_at timestamptz);
alter table app.posts add file_id uuid;
create table app.sessions (expires_at timestamptz);
create table app.email_tokens (expires_at timestamptz);
create table app.reset_tokens (expires_at timestamptz);
create table app.deliverables (status text, delivered_at timestamptz);
create table app.invitations (expires_at timestamptz);
create table app.logs (created_at timestamptz);
"""


def test_every_example_of_the_template_is_right(host_sql: Any, sql: Any) -> None:
    text, views = re.subn(
        r"(create or replace view procjobs\.\w+ as\n)select\n.*?where false;\n/\* for example:\n(.*?)\*/",
        r"\1\2;",
        template(),
        flags=re.DOTALL,
    )
    text, functions = re.subn(
        r"as \$\$\n[^$]*?\$\$;\n/\* for example:\n(.*?)\*/", r"as $$\n\1$$;", text, flags=re.DOTALL
    )
    text, policies = re.subn(
        r"/\* for example:\n(  select procjobs\.set_table_policy.*?)\*/", r"\1", text, flags=re.DOTALL
    )
    text = re.sub(r"    -- (grant [^;]*;)", r"    \1", text)
    assert (views, functions, policies) == (17, 5, 1)
    sql(EXAMPLE)
    host_sql(text)
    rows = sql("select object, kind, bound, problem from procjobs.list_host_bindings()")
    assert [row for row in rows if not row[2] or row[3]] == []
    for view, kind, *_ in rows:
        if kind == "view":
            assert sql(f"select * from procjobs.{view}") == []
    tables = dict(sql("select name, table_name from procjobs.table_policies"))
    assert all(table.startswith("app.") for table in tables.values())
    assert set(tables) == {row for (row,) in sql("select name from procjobs.retention_schedules() where of_policy")}
    assert all(sql.one("select procjobs.count_retention(%s)", name) == 0 for name in tables)
    user, organization = uuid4(), uuid4()
    sql("set role procjobs_owner")
    assert [sql.one("select procjobs.host_add_member(%s, %s, 'admin')", organization, user) for _ in "12"] == [
        True,
        False,
    ]
    sql("reset role")
    assert sql.one("select procjobs.host_invitable_roles(%s, %s)", user, organization) == ["member"]


#: Another shape: numbers for identifiers, other names, no groups' organizations; only what notifications need.
CRM = """
create schema crm;
create table crm.customers (no bigint primary key, display_name varchar(100), mail varchar(200), city_zone text);
create index on crm.customers ((md5('customer:' || no::text)::uuid));
create table crm.lists (no int primary key, label text);
create table crm.list_customers (list_no int, customer_no bigint);
create table crm.news (no int primary key, list_no int, headline text, words text);
insert into crm.customers
select n, 'Customer ' || n, 'c' || n || '@crm.example', 'Asia/Kolkata' from generate_series(1, 5000) n;
insert into crm.lists values (1, 'Spring offers');
insert into crm.list_customers values (1, 7);
insert into crm.news values (3, 1, 'Seeds are in', 'Beans, peas and beetroot.');
analyze crm.customers;
"""
CRM_HOST = """
grant usage on schema crm to procjobs_owner;
grant select on all tables in schema crm to procjobs_owner;
create or replace view procjobs.host_recipients as
select md5('customer:' || no::text)::uuid as id, md5('customer:' || no::text)::uuid as owner_id,
  display_name::text as name, 'customer' as relationship, mail::text as email, null::text as phone,
  city_zone as timezone, null::text as slack, null::text as webhook_url, no as crm_number
from crm.customers;
create or replace view procjobs.host_organizations as
select null::uuid as id, null::text as name, null::text as timezone, null::text as logo_url where false;
create or replace view procjobs.host_groups as
select md5('list:' || no::text)::uuid as id, null::uuid as organization_id, label as name from crm.lists;
create or replace view procjobs.host_group_recipients as
select md5('list:' || list_no::text)::uuid as group_id, md5('customer:' || customer_no::text)::uuid as recipient_id,
  null::timestamptz as muted_until
from crm.list_customers;
create or replace view procjobs.host_updates as
select md5('news:' || no::text)::uuid as id, md5('list:' || list_no::text)::uuid as group_id, 'The shop' as author_name,
  'text' as content_type, headline as title, words as body, null::text as url, null::text as image_url,
  now() as created_at
from crm.news;
select procjobs.check_host_bindings();
"""


async def test_a_foreign_schema_with_other_names_and_numbers_gets_its_mail(
    dsn: str, db: Database, sql: Any, host_sql: Any, explain: Any
) -> None:
    sql(CRM)
    host_sql(CRM_HOST)
    found = sql.one(
        """
        select procjobs.enqueue_notification_job(
          md5('customer:7')::uuid, md5('list:1')::uuid, md5('news:3')::uuid, 'newsletter', 'low', 'email', '{}', 0)
        """
    )
    async with MailServer() as server:
        mailer = Mailer("127.0.0.1", server.port, sender="shop@crm.example")
        assert isinstance(await deliver(db, mailer, Brand("The shop"), found, worker="w"), Sent)
        await mailer.close()
    (message,) = server.messages
    assert (message["To"], message["Subject"]) == ("Customer 7 <c7@crm.example>", "The shop: Seeds are in")
    assert "Beans, peas and beetroot." in message.get_body().get_content()  # type: ignore[union-attr]
    assert "Asia/Kolkata" in message.get_body().get_content()  # type: ignore[union-attr]
    plan = str(explain("select * from procjobs.host_recipients where id = md5('customer:7')::uuid"))
    assert "Index" in plan


def test_what_is_not_bound_says_so_when_it_is_needed(host_sql: Any, sql: Any) -> None:
    sql(CRM)
    host_sql(CRM_HOST.replace("procjobs.host_updates as", "procjobs.news as"))
    with pytest.raises(psycopg.Error) as refused:
        sql("select procjobs.enqueue_notification_job(md5('customer:7')::uuid)")
    error = translate(refused.value)
    assert isinstance(error, HostBindingMissing)
    assert error.message == "the application is not bound: host_updates missing"
    assert "host_recipients" in (error.detail or "")
    assert "procjobs migrate" in (error.hint or "")


def test_where_there_are_no_people_a_recipient_can_unsubscribe_from_a_kind_of_letters(host_sql: Any, sql: Any) -> None:
    sql(CRM)
    host_sql(CRM_HOST)
    assert sql.one("select to_regclass('procjobs.host_people')") is None
    sql("select procjobs.enqueue_letter('tips', %s, recipient => md5('customer:7')::uuid)", Jsonb(sample("tips")))
    token = sql.one("select procjobs.sign_subscription(procjobs.subscription_of(n)) from procjobs.notification_jobs n")
    assert sql("select what, subscribed, recipient_name from procjobs.unsubscribe(%s)", token) == [
        ("tips", False, "Customer 7")
    ]


@pytest.mark.parametrize(
    ("change", "to", "problem"),
    [
        ("mail::text as email", "mail as email", "host_recipients: column email is character varying(200), not text"),
        ("label as name", "label as title", "host_groups: column name text is missing"),
        (
            "now() as created_at",
            "current_date as created_at",
            "host_updates: column created_at is date, not timestamptz",
        ),
    ],
)
def test_a_binding_that_does_not_fit_stops_the_migration_and_changes_nothing(
    host_sql: Any, sql: Any, change: str, to: str, problem: str
) -> None:
    sql(CRM)
    before = sql("select pg_get_viewdef('procjobs.host_recipients'::regclass)")
    assert change in CRM_HOST
    with pytest.raises(MigrationError, match=re.escape(problem)):
        host_sql(CRM_HOST.replace(change, to))
    assert sql("select pg_get_viewdef('procjobs.host_recipients'::regclass)") == before


def test_every_problem_of_a_host_sql_is_listed_at_once(sql: Any) -> None:
    sql("drop view procjobs.host_groups, procjobs.host_people")
    sql("create view procjobs.host_groups as select 1 as id")
    sql("create view procjobs.host_people as select 'x' as name")
    sql("drop function procjobs.host_find_person(text)")
    sql("create function procjobs.host_find_person(p_mail text) returns text language sql as $$ select p_mail $$")
    lacking = ["id uuid", "email text", "phone text", "timezone text", "is_admin boolean", "wants_reports boolean"]
    lacking += ["created_at timestamptz", "last_active_at timestamptz"]
    with pytest.raises(psycopg.Error) as refused:
        sql("select procjobs.check_host_bindings()")
    assert refused.value.sqlstate == "PJ012"
    assert (refused.value.diag.message_detail or "").splitlines() == [
        "host_find_person: arguments are (p_mail text), not (p_email text)",
        "host_groups: column id is integer, not uuid; "
        + "; ".join(f"column {column} is missing" for column in ("organization_id uuid", "name text")),
        "host_people: " + "; ".join(f"column {column} is missing" for column in lacking),
    ]


def test_what_is_missing_is_told_even_where_nothing_is_bound(sql: Any) -> None:
    sql("drop view procjobs.host_groups")
    with pytest.raises(psycopg.Error, match="host_groups missing") as refused:
        sql("select procjobs.require_host('host_groups', 'host_people')")
    assert refused.value.sqlstate == "PJ012" and "host_people" in str(refused.value.diag.message_detail)
    for kind, name in sql("select kind, object from procjobs.list_host_bindings() where bound"):
        sql(f"drop {kind} procjobs.{name} cascade")
    with pytest.raises(psycopg.Error, match="host_groups missing") as refused:
        sql("select procjobs.require_host('host_groups')")
    assert (refused.value.sqlstate, refused.value.diag.message_detail) == ("PJ012", "host.sql creates nothing")


def test_an_application_s_own_comments_are_kept(host_sql: Any, sql: Any) -> None:
    sql(CRM)
    mine = "comment on view procjobs.host_groups is 'Mailing lists of the CRM';\nselect procjobs.check_host_bindings();"
    host_sql(CRM_HOST.replace("select procjobs.check_host_bindings();", mine))
    assert sql.one("select obj_description('procjobs.host_groups'::regclass)") == "Mailing lists of the CRM"
    assert sql.one("select col_description('procjobs.host_groups'::regclass, 3)") == "Shown in mails."


def test_host_sql_may_be_applied_by_hand_again_and_again(host_sql: Any, sql: Any) -> None:
    host_sql(template())
    for _ in range(2):
        sql(template())


# procjobs.toml


def test_every_setting_the_template_shows_is_one_and_holds(tmp_path: Path) -> None:
    path = tmp_path / "procjobs.toml"
    path.write_text((TEMPLATES / "procjobs.toml").read_text(encoding="utf-8"), encoding="utf-8")
    assert Settings.load(config=path, environ={}).host_sql == tmp_path / "host.sql"

    shown = re.sub(r"^# (?=\w+ = )", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    path.write_text(shown, encoding="utf-8")
    settings = Settings.load(config=path, environ={})
    assert (settings.smtp_tls, settings.mail_from, settings.brand_name) == (
        "starttls",
        "Example <post@example.com>",
        "Example",
    )
    flat = {
        f"{key}_{inner}" if isinstance(value, dict) else key
        for key, value in tomllib.loads(shown).items()
        for inner in (value if isinstance(value, dict) else [""])
    }
    assert {item.name for item in fields(Settings)} - flat == {"user_token", "admin_token"}
