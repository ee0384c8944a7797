"""The client's ledger of unique keys and batches, held against the database."""

from __future__ import annotations

import json

from tests.chaos.harness.site import Site


def test_the_ledger_knows_duplicates_and_promised_callbacks(site: Site) -> None:
    """What a client of keys and batches was told is held against the database."""
    client, sql = site.client, site.sql
    key = {"task": "work", "unique_key": "k", "unique_while": "waiting"}
    assert len(client.enqueue_keyed([key, {"task": "work"}, key], batch=True)) == 2
    account = site.ledger.read()
    assert (len(account.acknowledged), len(account.duplicates), len(account.promised)) == (2, 1, 1)
    assert not account.unknown
    lost = {violation.what for violation in site.violations() if violation.invariant in ("I1", "I2", "I15")}
    assert "a callback of a batch that was acknowledged is lost" in lost, "none of it has run yet"
    sql("update procrastinate_jobs set args = jsonb_set(args, '{key}', %s)", json.dumps(min(account.duplicates)))
    assert "a duplicate and there nevertheless" in {violation.what for violation in site.violations()}
