"""Workers and clients without a safeguard against the network between them and PostgreSQL: scenarios 11 to 15."""

from __future__ import annotations

from typing import Any

import pytest
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException

import procjobs
from procjobs.engine.connector import Connector
from procjobs.errors import DatabaseError
from tests.chaos.harness.hands import MUTATED
from tests.chaos.harness.proxy import Proxy
from tests.chaos.harness.site import Site, until


@MUTATED
async def test_a_client_who_does_not_know_whether_it_is_there(
    proxied: Site, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, mutated: bool
) -> None:
    """Scenario 11: it is told so, and nothing sends it again by itself."""
    send = Connector.row

    async def insist(*arguments: Any) -> Any:
        try:
            return await send(*arguments)
        except ConnectorException:
            return await send(*arguments)

    if mutated:
        monkeypatch.setattr(Connector, "row", insist)
    proxy.lose("procjobs.enqueue(")
    app = procjobs.App(proxied.fleet.dsn)
    async with app.open_async():
        try:
            await app.configure_task("work").defer_async(key="a")
        except (ConnectorException, DatabaseError):
            assert not mutated
    assert proxied.sql.one("select count(*) from procrastinate_jobs") == (2 if mutated else 1)


@MUTATED
async def test_a_client_who_sends_it_again_under_a_queueing_lock(proxied: Site, proxy: Proxy, mutated: bool) -> None:
    """Scenario 11: there is one all the same."""
    if mutated:
        proxied.sql("drop index public.procrastinate_jobs_queueing_lock_idx_v1")
    proxy.lose("procjobs.enqueue(")
    app = procjobs.App(proxied.fleet.dsn)
    async with app.open_async():
        deferrer = app.configure_task("work", queueing_lock="one")
        with pytest.raises((ConnectorException, DatabaseError)):
            await deferrer.defer_async(key="a")
        try:
            await deferrer.defer_async(key="a")
        except AlreadyEnqueued:
            assert not mutated
    assert proxied.sql.one("select count(*) from procrastinate_jobs") == (2 if mutated else 1)


@MUTATED
def test_a_claim_whose_reply_was_lost(proxied: Site, proxy: Proxy, mutated: bool) -> None:
    """Scenario 12: nobody gives the orphans back."""
    if mutated:
        proxied.replace("release_unknown", "and not exists (", "and false and not exists (")
    orphans = proxied.client.enqueue("work", 3)
    loss = proxy.lose("claim_jobs")
    proxied.fleet.start()
    until(loss.happened.is_set, what=proxied.logs)
    second = proxied.client.enqueue("work", 3)
    proxied.ended(second)
    if not mutated:
        proxied.drained()
    assert ("I6" in proxied.broken()) == mutated, proxied.says()
    assert len(orphans) == 3


@pytest.mark.parametrize("mutant", ["none", "results_are_dropped"])
def test_a_result_that_could_not_be_reported(proxied: Site, proxy: Proxy, mutant: str) -> None:
    """Scenario 13: the report is lost on its way."""
    first = proxied.client.enqueue("work", 3)
    loss = proxy.lose("finish_jobs", what="request")
    proxied.fleet.start(mutant=mutant)
    until(loss.happened.is_set, what=proxied.logs)
    second = proxied.client.enqueue("work", 3)
    proxied.ended(second)
    if mutant == "none":
        proxied.drained()
    assert ("I6" in proxied.broken()) == (mutant != "none"), proxied.says()
    assert len(first) == 3


@pytest.mark.parametrize("mutant", ["none", "no_self_fence"])
def test_a_worker_that_goes_on_without_a_database(proxied: Site, proxy: Proxy, mutant: str) -> None:
    """Scenario 14: cut off for longer than its lease, while another takes over."""
    proxied.client.enqueue("endure", lock="one")
    proxied.fleet.start(mutant=mutant)
    proxied.running()
    proxy.blackhole()
    proxied.fleet.start(dsn=proxied.dsn)
    proxied.running(2)
    proxied.open_gate()
    until(lambda: proxied.sql.one("select count(*) from procjobs.job_history") == 1, what=proxied.left)
    proxy.heal()
    until(lambda: proxied.sql.one("select bool_and(not upper_inf(span)) from chaos.executions"))
    proxied.drained()
    assert ("I4" in proxied.broken()) == (mutant != "none"), proxied.says()


@pytest.mark.parametrize("mutant", ["none", "hanging_heartbeat_is_waited_for"])
def test_a_heartbeat_whose_answer_never_comes(proxied: Site, proxy: Proxy, mutant: str) -> None:
    """Scenario 15: half open. Given up in good time the lease holds; waited for, it is lost."""
    worker = proxied.fleet.start(mutant=mutant)
    beats = "select 1 from procjobs.worker_state where last_heartbeat > started_at"
    until(lambda: proxied.sql(beats), what=proxied.logs)
    before = proxied.sql.one("select max(last_heartbeat) from procjobs.worker_state")
    until(lambda: proxy.forsake("procjobs heartbeat"))
    again = "select max(last_heartbeat) > %s::timestamptz + interval '3 s' from procjobs.worker_state"
    until(
        lambda: proxied.sql.one(again, before) or worker.said("no heartbeat for") or proxied.silent(), what=proxied.logs
    )
    assert proxied.silent() == (mutant != "none"), proxied.logs()
