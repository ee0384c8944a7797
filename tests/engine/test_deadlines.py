"""The second clock: jobs over their deadline are asked to stop by SQL, and end as timed out, not as cancelled."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Sql
from tests.engine.fleet import Claim, Fleet


@pytest.fixture
def fleet(sql: Sql) -> Fleet:
    made = Fleet(sql)
    made.policy("work", timeout=30, max_attempts=2, backoff_base=10, backoff_jitter=False)
    return made


def claimed(fleet: Fleet) -> Claim:
    fleet.defer()
    (claim,) = fleet.claim(fleet.worker())
    return claim


def overdue(fleet: Fleet, seconds: float = 60) -> int:
    with fleet.at(fleet.later(seconds)):
        found: int = fleet.sql.one("select procjobs.stop_overdue_jobs()")
        return found


def asked(fleet: Fleet, claim: Claim) -> Any:
    return fleet.sql.one("select procjobs.abort_requests(%s)", claim.worker)


def test_a_job_over_its_deadline_is_asked_to_stop_once_after_a_grace(fleet: Fleet, sql: Sql) -> None:
    claim = claimed(fleet)
    assert overdue(fleet, 35) == 0  # the worker has ten seconds to do it by itself
    assert overdue(fleet, 45) == 1
    assert overdue(fleet, 45) == 0
    assert asked(fleet, claim) == [claim.id]
    assert sql("select action, actor from procjobs.actions where job_id = %s", claim.id) == [("overdue", "procjobs")]


def test_a_job_without_a_timeout_may_take_as_long_as_it_likes(fleet: Fleet) -> None:
    fleet.policy("work")
    claimed(fleet)
    assert overdue(fleet, 10**8) == 0


def test_upkeep_does_it(fleet: Fleet, sql: Sql) -> None:
    claim = claimed(fleet)
    with fleet.at(fleet.later(60)):
        sql("update procjobs.worker_state set last_heartbeat = procjobs.clock()")
        sql("select procjobs.upkeep()")
    assert asked(fleet, claim) == [claim.id]


@pytest.mark.parametrize("outcome", ["cancelled", "failed"])
def test_it_spends_an_attempt_and_is_retried_by_policy(fleet: Fleet, sql: Sql, outcome: str) -> None:
    claim = claimed(fleet)
    overdue(fleet)
    assert fleet.settle(claim, outcome, error_class="JobTimeout") == "retrying"
    assert sql("select outcome, error_class from procjobs.attempts where job_id = %s", claim.id) == [
        ("failed", "JobTimeout")
    ]
    ((status, attempts, asked_to, cancel),) = sql(
        "select status::text, attempts, abort_requested, pj_cancel from procrastinate_jobs where id = %s", claim.id
    )
    assert (status, attempts, asked_to, cancel) == ("todo", 1, False, None)


def test_the_last_attempt_is_a_dead_letter(fleet: Fleet, sql: Sql) -> None:
    claim = claimed(fleet)
    sql("update procrastinate_jobs set attempts = 1 where id = %s", claim.id)
    overdue(fleet)
    assert fleet.settle(claim, "cancelled") == "failed"


def test_what_is_given_back_waits_again(fleet: Fleet) -> None:
    claim = claimed(fleet)
    overdue(fleet)
    assert fleet.settle(claim, "released", started=True) == "released"
    assert fleet.status(claim.id) == "todo"


def test_a_person_who_cancels_it_later_has_the_last_word(fleet: Fleet, sql: Sql) -> None:
    claim = claimed(fleet)
    overdue(fleet)
    assert sql.one("select procjobs.cancel(%s, 'enough')", claim.id) == "requested"
    assert fleet.settle(claim, "failed", error_class="JobTimeout") == "failed"
    assert fleet.status(claim.id) == "failed"


def test_one_that_succeeds_late_stays_succeeded_and_says_so(fleet: Fleet, sql: Sql) -> None:
    claim = claimed(fleet)
    overdue(fleet)
    fleet.finish(claim)
    assert sql("select status::text, note from procjobs.jobs") == [("succeeded", "it ended after its timeout")]


def test_the_deadline_of_an_earlier_run_is_not_the_next_ones(fleet: Fleet, sql: Sql) -> None:
    claim = claimed(fleet)
    fleet.settle(claim, "released", started=True)
    assert sql.one("select pj_deadline from procrastinate_jobs where id = %s", claim.id) is None
    fleet.policy("work")  # no timeout any more
    assert fleet.claim_ids(fleet.worker()) == [claim.id]
    assert overdue(fleet, 10**6) == 0


@pytest.mark.parametrize("disposal", ["archive", "keep"])
def test_a_job_that_succeeds_after_its_timeout_says_so(fleet: Fleet, sql: Sql, disposal: str) -> None:
    claim = claimed(fleet)
    assert overdue(fleet) == 1
    fleet.finish(claim, disposal=disposal)
    assert sql("select status::text, note from procjobs.jobs") == [("succeeded", "it ended after its timeout")]
