"""A made-up application with tables of its own, bound by a host.sql of its own, gets what the packs do.

foreign/club.sql is the application, foreign/host.sql the binding: numbers for keys, other names, times without a zone,
rows that are marked instead of deleted, roles as an enum.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import psycopg
import pytest

from procjobs.app import App, default_app
from procjobs.migrate import migrate
from procjobs.settings import Settings
from tests.mail_server import MailServer

FOREIGN = Path(__file__).parent / "foreign"
ROWS = """
insert into club.member (surname, given_name, mail, region, speaks_for_club, left_on)
values
  ('Amsler', 'Vreni', 'vreni@club.example', null, true, null),
  ('Diallo', 'Awa', 'awa@club.example', 'Africa/Dakar', false, null),
  ('Frei', 'Urs', 'urs@club.example', null, false, date '2020-01-01'), ('Keller', 'Beat', null, null, false, null);
insert into club.crew values (1, 'Lake eight', null), (2, 'Old four', date '2019-05-01');
insert into club.seat (crew_no, member_no, duty) values (1, 1, 'trains'), (1, 4, 'steers'), (2, 1, 'trains');
insert into club.board values (1, 1, 'Boathouse');
insert into club.board_reader values (1, 1), (1, 2), (1, 3);
insert into club.note (board_no, by_member, kind, headline, words, pinned_at, withdrawn)
values (1, 1, 'picture', 'Mist on the lake', 'Six in the morning.', now() at time zone 'Europe/Zurich', false),
  (1, 1, 'word', 'Oops', null, now() at time zone 'Europe/Zurich', true);
insert into club.note_seen values (1, 1, localtimestamp);
insert into club.water values (1, 'Rotsee, Lucerne', 'Europe/Zurich'), (2, 'Lake Natoma', 'America/Los_Angeles');
insert into club.regatta (regatta_no, crew_no, called, water_no, begins, minutes, called_off_on)
values
  (7, 1, 'Long Distance Cup', 2, (now() + interval '20 hours') at time zone 'America/Los_Angeles', 90, null),
  (8, 1, 'Called off', 1, (now() + interval '20 hours') at time zone 'Europe/Zurich', 90, current_date);
insert into club.entry values (7, 2, 24), (7, 1, null), (7, 3, 24), (8, 2, 24);
insert into club.boat_order (order_no, crew_no, boat, buyer_no, deposit_on, rest_centimes, rest_on, struck_off)
values
  (40, 1, 'Eight "Föhn"', 1, now() at time zone 'Europe/Zurich' - interval '4 days', 1234550, null, false),
  (41, 1, 'Struck off', 1, now() at time zone 'Europe/Zurich' - interval '4 days', 100, null, true),
  (42, 1, 'Buyer has no mail', 4, now() at time zone 'Europe/Zurich' - interval '4 days', 100, null, false);
"""


@pytest.fixture
def club(dsn: str, sql: Any) -> None:
    """The application as it was, then `procjobs migrate` with its host.sql."""
    sql((FOREIGN / "club.sql").read_text(encoding="utf-8"))
    sql(ROWS)
    migrate(dsn, host_sql=FOREIGN / "host.sql")


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    async with MailServer() as running:
        yield running


@pytest.fixture
def app(dsn: str, server: MailServer) -> App:
    smtp = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(server.port), "MAIL_FROM": "The club <post@club.example>"}
    return default_app(
        Settings.load(environ={"DATABASE_URL": dsn} | {f"PROCJOBS_{name}": value for name, value in smtp.items()})
    )


async def work(app: App, sql: Any) -> None:
    """Workers until no job is left."""
    async with app.open_async():
        while sql.one("select count(*) from public.procrastinate_jobs where status = 'todo'"):
            await app.run_worker_async(wait=False, install_signal_handlers=False)


def words(message: EmailMessage) -> str:
    found = message.get_body(("plain",))
    assert found is not None
    return str(found.get_content())


def test_what_the_packs_need_is_bound_and_fits(club: None, sql: Any) -> None:
    rows = sql("select object, bound, problem from procjobs.list_host_bindings()")
    assert [row for row in rows if row[2]] == []
    needed = {"host_people", "host_recipients", "host_organizations", "host_memberships", "host_groups"}
    needed |= {"host_group_recipients", "host_updates", "host_update_reads", "host_events", "host_event_attendees"}
    needed |= {"host_projects", "host_find_person", "host_invitable_roles", "host_add_member", "host_register_url"}
    assert needed <= {name for name, bound, _ in rows if bound}


def test_what_the_documentation_shows_is_in_it() -> None:
    def plain(text: str) -> str:
        return re.sub(r"\s+", " ", re.sub(r" *--.*", "", text))

    page = (Path(__file__).parents[2] / "docs/host-bindings.md").read_text(encoding="utf-8")
    (shown,) = (block for block in re.findall(r"```sql\n(.*?)```", page, re.DOTALL) if "club." in block)
    statements = re.split(r";\n\n", shown.strip().removesuffix(";"))
    assert len(statements) == 4
    assert [found for found in statements if plain(found) not in plain((FOREIGN / "host.sql").read_text())] == []


async def test_a_notification_a_payment_reminder_and_an_event_reminder_reach_the_members(
    club: None, sql: Any, app: App, server: MailServer
) -> None:
    sql("select procjobs.declare_reminders()")
    sql(
        "select procjobs.enqueue_notification_job(m.public_id, md5('board:1')::uuid, md5('note:1')::uuid) "
        "from club.member m where surname = 'Diallo'"
    )
    sql("select procjobs.defer('procjobs.create_payment_reminders'), procjobs.defer('procjobs.create_event_reminders')")
    await work(app, sql)
    sql("select procjobs.defer('procjobs.create_payment_reminders'), procjobs.defer('procjobs.create_event_reminders')")
    await work(app, sql)  # once each

    mails = sorted(server.messages, key=lambda message: str(message["Subject"]))
    assert [(str(mail["To"]), str(mail["Subject"]).partition(",")[0]) for mail in mails] == [
        ("Vreni Amsler <vreni@club.example>", "Reminder: 12"),
        ("Awa Diallo <awa@club.example>", "Reminder: Long Distance Cup"),
        ("Awa Diallo <awa@club.example>", "Vreni Amsler: Mist on the lake"),
    ]
    payment, event, notification = (words(mail) for mail in mails)
    assert 'Eight "Föhn"' in payment and "12,345.50\u00a0CHF" in payment and "paid 4 days ago" in payment
    assert "Organization: Lake eight" in payment and "Pay it the way you paid the advance" in payment
    assert "(Africa/Dakar)" in event and "(America/Los Angeles)" in event and "Where: Lake Natoma" in event
    assert "https://club.example/regatta/7" in event
    assert "Six in the morning." in notification and "https://club.example/note/1" in notification
    assert sql("select about, reason from procjobs.list_reminders() where outcome = 'unreachable'") == [
        ("Buyer has no mail", "the contact has no e-mail address")
    ]


def test_digests_find_what_is_unread_there(club: None, sql: Any) -> None:
    unread = """
      select r.name, u.title, u.content_type, u.created_at between now() - interval '1 hour' and now()
      from procjobs.host_group_recipients g
      join procjobs.host_recipients r on r.id = g.recipient_id
      join procjobs.host_updates u on u.group_id = g.group_id
      where coalesce(g.muted_until <= now(), true)
        and not exists (select from procjobs.host_update_reads s where s.update_id = u.id and s.recipient_id = r.id)
    """
    assert sql(unread) == [("Awa Diallo", "Mist on the lake", "photos", True)]
    mute = "select procjobs.host_mute(public_id, md5('board:1')::uuid, 'infinity') from club.member where member_no = 2"
    assert [sql.one(mute), sql.one(mute), sql(unread)] == [True, False, []]


def test_invitations_join_a_crew_with_its_own_roles(club: None, sql: Any, dsn: str) -> None:
    sql("set role procjobs_owner")
    awa = sql.one("select procjobs.host_find_person(' AWA@club.example ')")
    vreni, crew = sql("select procjobs.host_find_person('vreni@club.example'), md5('crew:1')::uuid")[0]
    assert sql.one("select procjobs.host_find_person('urs@club.example')") is None  # left
    roles = "select procjobs.host_invitable_roles(%s, %s)"
    assert sql.one(roles, vreni, crew) == ["steers", "trains", "rows"]
    assert sql.one(roles, awa, crew) == []
    assert sql.one("select procjobs.host_invitable_roles(%s, md5('crew:2')::uuid)", vreni) == []  # disbanded

    def add(_: int) -> bool:
        with psycopg.connect(dsn, autocommit=True) as connection:
            row = connection.execute("select procjobs.host_add_member(%s, %s, 'rows')", (crew, awa)).fetchone()
        return bool(row and row[0])

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(add, range(4))) == [False, False, False, True]
    sql("reset role")
    sql("update club.seat set left_on = current_date where member_no = 2")
    membership = "select role from procjobs.host_memberships where person_id = %s"
    assert [sql(membership, awa), add(0), sql(membership, awa)] == [[], True, [("rows",)]]
    assert sql.one("select procjobs.host_register_url('a+b@c.example', '/invite/x')").endswith(
        "mail=a%2Bb%40c.example&then=%2Finvite%2Fx"
    )


@pytest.mark.parametrize(
    ("view", "key"),
    [("people", None), ("recipients", None), ("organizations", "crew"), ("groups", "board"), ("updates", "note"),
     ("events", "regatta"), ("projects", "order")],
)  # fmt: skip
def test_what_is_looked_up_by_id_is_found_by_an_index(club: None, explain: Any, sql: Any, view: str, key: str) -> None:
    wanted = f"md5('{key}:1')::uuid" if key else "'00000000-0000-0000-0000-000000000001'"
    sql("insert into club.member (surname, given_name) select 'Many', n::text from generate_series(1, 2000) n")
    sql("analyze club.member")
    sql("set enable_seqscan = off")  # the other tables are small
    plan = str(explain(f"select * from procjobs.host_{view} where id = {wanted}"))
    assert (f"{'boat_order' if key == 'order' else key}_uuid" if key else "member_public_id_key") in plan
