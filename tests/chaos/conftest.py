"""Fixtures of the chaos tests: a site (database, workers, client, ledger), and one behind a proxy."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from procjobs.embedded import EmbeddedPostgres
from procjobs.migrate import migrate
from tests.chaos.harness.hands import Hands
from tests.chaos.harness.proxy import Proxy
from tests.chaos.harness.site import Site
from tests.engine.fleet import Fleet

Build = Callable[..., Site]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """`build(dsn)` makes a site over a migrated database; it is closed after the test."""
    sites: list[Site] = []

    def make(dsn: str, *, via: str | None = None) -> Site:
        folder = tmp_path / f"site{len(sites)}"
        folder.mkdir()
        sites.append(Site(dsn, folder, via=via))
        return sites[-1]

    yield make
    for site in sites:
        print(site.logs())
        site.close()


@pytest.fixture
def site(build: Build, dsn: str) -> Site:
    """A site over a database of the shared server."""
    return build(dsn)


@pytest.fixture
def hands(site: Site) -> Hands:
    """Workers of that site played by hand, who know the task `work`; it runs once."""
    site.sql("""select procjobs.register_tasks('[{"name": "work", "max_attempts": 1}]', 'chaos')""")
    return Hands(site, Fleet(site.sql))


@pytest.fixture
def own(build: Build, server: EmbeddedPostgres) -> Site:
    """A site over a server of the test's own, which it may stop and kill."""
    dsn = server.create_database("chaos")
    migrate(dsn)
    return build(dsn)


def socket_of(dsn: str) -> str:
    """The path of the Unix socket that a DSN names."""
    where = conninfo_to_dict(dsn)
    return f"{where['host']}/.s.PGSQL.{where['port']}"


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    """A proxy before the shared server."""
    with Proxy(socket_of(dsn)) as running:
        yield running


@pytest.fixture
def proxied(build: Build, dsn: str, proxy: Proxy) -> Site:
    """A site whose workers connect through `proxy`; its client and its tasks do not."""
    return build(dsn, via=proxy.dsn(str(conninfo_to_dict(dsn)["dbname"])))


@pytest.fixture
def dice() -> random.Random:
    """Chance with a printed seed; PROCJOBS_CHAOS_SEED repeats it."""
    seed = int(os.environ.get("PROCJOBS_CHAOS_SEED") or random.randrange(1_000_000))
    print(f"PROCJOBS_CHAOS_SEED={seed}")
    return random.Random(seed)
