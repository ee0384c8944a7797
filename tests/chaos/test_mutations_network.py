"""Workers and clients without a safeguard against the network between them and PostgreSQL: scenarios 11 to 15."""

from __future__ import annotations

import pytest

from tests.chaos.harness.hands import MUTATED
from tests.chaos.harness.proxy import Proxy
from tests.chaos.harness.site import Site, until


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
    proxied.fleet.start(app="tests.chaos.mutants.app", CHAOS_MUTANT=mutant)
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
    proxied.fleet.start(app="tests.chaos.mutants.app", CHAOS_MUTANT=mutant)
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
    worker = proxied.fleet.start(app="tests.chaos.mutants.app", CHAOS_MUTANT=mutant)
    beats = "select 1 from procjobs.worker_state where last_heartbeat > started_at"
    until(lambda: proxied.sql(beats), what=proxied.logs)
    before = proxied.sql.one("select max(last_heartbeat) from procjobs.worker_state")
    until(lambda: proxy.forsake("procjobs heartbeat"))
    again = "select max(last_heartbeat) > %s::timestamptz + interval '3 s' from procjobs.worker_state"
    until(
        lambda: proxied.sql.one(again, before) or worker.said("no heartbeat for") or proxied.silent(), what=proxied.logs
    )
    assert proxied.silent() == (mutant != "none"), proxied.logs()
