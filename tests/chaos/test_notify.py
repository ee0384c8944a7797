"""Notifications that lie: scenario 36. Anybody who may connect may send them."""

from __future__ import annotations

import json
import random

from tests.chaos.harness.site import Site

CHANNELS = ("procrastinate_any_queue_v1", "procrastinate_queue_v1#default", "procrastinate_queue_v1#", "procrastinate")

ODD: list[object] = ["x", None, -1, 2**70, [], {}]


def test_36_ten_thousand_forged_and_malformed_notifications(site: Site, dice: random.Random) -> None:
    running = site.client.enqueue("endure", 5)
    worker = site.fleet.start(concurrency=10)
    site.running(5)
    site.sql("create role stranger login")
    site.sql("set role stranger")
    forged = [
        *(json.dumps({"type": "abort_job_requested", "job_id": job}) for job in running),
        *(json.dumps({"type": "abort_job_requested", "job_id": odd}) for odd in ODD),
        json.dumps({"type": "job_inserted", "job_id": 0}),
        '{"type": "abort', "", " ", "null", "[1]", "17", '{"type": 7}', "abort" * 1500, "\x01\x02\ufffd",
        '{"a":' * 1000, "é" * 3000, "9" * 7000,
    ]  # fmt: skip
    for first in range(0, 10_000, 500):
        batch = [dice.choice(forged) + " " * dice.randrange(5) for _ in range(500)]
        site.sql("select pg_notify(%s, p) from unnest(%s::text[]) p", CHANNELS[first // 500 % len(CHANNELS)], batch)
        if first % 2000 == 0:
            site.sql("reset role")
            more = site.client.enqueue("work", 3)
            site.ended(more)
            site.sql("set role stranger")
    site.sql("reset role")
    site.sql("drop role stranger")
    assert {site.status(job) for job in running} == {"doing"}, "nobody who may do so asked to cancel them"
    site.open_gate()
    site.check_all_succeeded()
    assert worker.alive and not worker.said("starts again")
    assert worker.memory() < 300_000_000
