"""The benchmark measures what it says: every job done and acknowledged, each contender beside the stock one."""

from __future__ import annotations

import json
import os
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import psycopg
import pytest
from click.testing import CliRunner

from procjobs.bench import drain as draining
from procjobs.bench import run as running
from procjobs.bench.chart import chart
from procjobs.bench.command import _command, bench
from procjobs.bench.contenders import CONTENDERS, PEERS, PROCJOBS, STOCK, Contender, Peer
from procjobs.bench.databases import Databases
from procjobs.bench.drain import Starts, drain, enqueue, prepare
from procjobs.bench.environments import Environments, NotInstalled
from procjobs.bench.measures import waits
from procjobs.bench.report import BEGIN, END, grids, markdown
from procjobs.bench.run import Figures
from procjobs.bench.shapes import EMPTY, SHAPES, Shape
from procjobs.bench.subjects.counter import Counter

pytestmark = pytest.mark.slow

OURS = Contender(PROCJOBS, 100, 1, 300)
ABOUT = dict.fromkeys(
    ("processors", "memory", "flush", "load", "postgresql", "python", "psycopg", "rounds", "seed", "command"), "1"
)


@pytest.fixture(scope="module")
def databases(cluster):
    made = Databases(cluster.dsn())
    yield made
    made.close()


@pytest.fixture
def clone(databases):
    """A database with our schema, which is made once."""
    template = databases.template("ours", lambda dsn: prepare(Environments(), OURS, dsn))
    with databases.clone(template) as dsn:
        yield dsn


def names(cluster):
    """The databases that there are."""
    with psycopg.connect(cluster.dsn()) as connection:
        return {name for (name,) in connection.execute("select datname from pg_database").fetchall()}


def test_a_run_sets_ours_beside_stock_and_saves_the_figures(cluster, monkeypatch, tmp_path):
    small = [Contender(STOCK, 10, 1, 600), Contender(PROCJOBS, 500, 2, 600)]
    before = names(cluster)
    monkeypatch.setattr(running, "CONTENDERS", small)
    monkeypatch.setattr("procjobs.bench.report.CONTENDERS", small)
    saved, page = tmp_path / "figures.json", tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    arguments = [
        "--dsn",
        cluster.dsn(),
        "--rounds",
        "1",
        "--measure",
        "drain",
        "--save",
        str(saved),
        "--page",
        str(page),
    ]
    ran = CliRunner().invoke(bench, [*arguments, "--json"])
    assert ran.exit_code == 0, ran.output
    figures = json.loads(saved.read_text())
    assert figures["left_out"] == {}
    medians = {r["who"]: r["median"] for r in figures["results"]}
    assert set(medians) == {c.name for c in small}
    assert medians[small[1].name] > medians[small[0].name] > 0
    assert "old" not in page.read_text()
    assert f"| {small[1].name} |" in page.read_text()
    assert (tmp_path / "images" / "benchmark.svg").exists()
    assert names(cluster) == before


def test_only_what_is_acknowledged_counts(clone, monkeypatch):
    """Jobs that started, or that a worker holds ahead, are not done."""
    monkeypatch.setattr(draining, "_LONGEST", 1.0)
    counting = replace(PROCJOBS, acknowledged="select count(*) from procjobs.job_history where false and %(jobs)s > 0")
    done = drain(Environments(), replace(OURS, peer=counting), EMPTY, clone, 200)
    assert done.acknowledged == 0
    assert done.rate == 0


def test_the_clock_starts_with_the_first_job(clone):
    began = time.monotonic()
    done = drain(Environments(), OURS, EMPTY, clone, 300)
    assert done.acknowledged == 300
    assert 0 < done.seconds < time.monotonic() - began


@pytest.mark.parametrize("mode", ["one", "many", "copy"])
def test_every_way_to_enqueue_makes_jobs_that_run(clone, mode):
    assert enqueue(Environments(), OURS, clone, mode, 50) > 0
    with psycopg.connect(clone) as connection:
        row = connection.execute("select count(*) from procrastinate_jobs where pj_waits_for is null").fetchone()
    assert row == (50,)


def test_waits_are_those_of_the_paced_jobs(clone):
    found = waits(Environments(), OURS, clone, 60)
    assert 0 < found.p50 <= found.p95 <= found.p99 < 1000


@pytest.mark.parametrize("task", ["thread", "process"])
def test_plain_functions_run_in_threads_and_in_processes(clone, task):
    done = drain(Environments(), replace(OURS, task=task, concurrency=2), EMPTY, clone, 20)
    assert done.acknowledged == 20


@pytest.mark.parametrize("shape", [s for s in SHAPES if s.fill or s.backlog], ids=lambda shape: shape.name)
def test_a_shape_leaves_what_is_measured_alone(clone, shape):
    """With a hundredth of the others."""
    fill = shape.fill.replace("1, 1000000)", "1, 10000)").replace("1, 10000)", "1, 1000)")
    with psycopg.connect(clone, autocommit=True) as connection:
        connection.execute(fill.encode())
    done = drain(Environments(), OURS, replace(shape, fill=fill), clone, 300)
    assert done.acknowledged >= 300
    if "one lock" in shape.name:
        assert done.beside > 0


def test_a_held_transaction_is_held_while_jobs_run(clone):
    with draining._held(clone, True), psycopg.connect(clone) as connection:
        row = connection.execute(
            "select count(*) from pg_stat_activity where backend_xmin is not null and state = 'idle in transaction'"
        ).fetchone()
    assert row == (1,)
    assert drain(Environments(), OURS, Shape("held", held=True), clone, 100).acknowledged == 100


def test_a_peer_that_cannot_be_installed_is_left_out_with_the_reason(databases, monkeypatch):
    needy = Peer("needy", "needy_app.py", "select 1", "needy", python=(3, 99))
    monkeypatch.setattr(running, "CONTENDERS", [Contender(needy, 1, 1, 1)])
    run = running.Run(databases, Environments(), 1, said=lambda words: None)
    assert run.all().left_out == {"needy": "not installed: it needs Python 3.99, which is not here"}


def test_no_npm_is_said_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    node = next(peer for peer in PEERS if peer.node)
    with pytest.raises(NotInstalled, match="no npm"):
        Environments(tmp_path).prepare(node)


def test_a_counter_tells_starts_and_waits(tmp_path):
    counter = Counter(str(tmp_path / "starts"))
    counter.start()
    counter.start(time.monotonic_ns() - 5_000_000)
    starts = Starts(str(tmp_path / "starts"))
    assert starts.count == 2
    assert 0 < starts.first <= time.monotonic()
    (wait,) = starts.waits()
    assert 5 <= wait < 1000
    assert os.listdir(tmp_path) == [f"starts.{os.getpid()}"]


def test_medians_ratios_and_the_picture():
    figures = Figures()
    for rate in (100.0, 300.0, 200.0):
        figures.add("drain", CONTENDERS[0].name, EMPTY.name, rate)
        figures.add("drain", CONTENDERS[2].name, EMPTY.name, rate * 50)
    rows = {row[0]: row[1:] for grid in grids(figures) for row in grid.rows}
    assert rows[CONTENDERS[2].name] == ("10,000", "5,000-15,000", "50.0")
    picture = ElementTree.fromstring(chart(figures))
    space = "{http://www.w3.org/2000/svg}"
    assert picture.find(f"{space}title") is not None
    description = picture.find(f"{space}desc")
    assert description is not None
    assert f"{CONTENDERS[2].name}: 10,000" in (description.text or "")
    assert picture.find(f"{space}script") is None


def test_the_command_is_shown_without_places_and_passwords():
    given = [
        "bench",
        "--dsn",
        "postgresql://me:secret@host/x",
        "--rounds",
        "3",
        "--save=/home/me/f.json",
        "--only",
        "awa",
    ]
    assert _command(given) == "procjobs bench --rounds 3 --only awa"


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="the page has no"):
        markdown("nothing", Figures(), ABOUT)
