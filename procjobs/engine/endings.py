"""The log lines about how runs ended: never with arguments, nor with an exception's message, which may quote them."""

from __future__ import annotations

import logging
from typing import Any

from procjobs.engine.claimed import Claimed

__all__ = ["log_settlement", "log_success"]

logger = logging.getLogger("procjobs.worker")


def log_success(job: Claimed, took: float) -> None:
    """took: seconds from start to end of the run."""
    logger.info(
        "job %s (%s) succeeded in %.3f s",
        job.id,
        job.task_name,
        took,
        extra={"action": "job_succeeded", "job_id": job.id, "task": job.task_name, "took": round(took, 6)},
    )


def log_settlement(job: Claimed, settlement: dict[str, Any], took: float) -> None:
    """settlement: the keys that go to `settle_jobs`; the error itself is in procjobs.attempts."""
    outcome = settlement["outcome"]
    failed = outcome in ("failed", "crashed")
    logger.log(
        logging.ERROR if failed else logging.INFO,
        "job %s (%s) %s after %.3f s%s",
        job.id,
        job.task_name,
        outcome,
        took,
        f" with {settlement.get('error_class')}; see procjobs.attempts" if failed else "",
        extra={
            "action": f"job_{outcome}",
            "job_id": job.id,
            "task": job.task_name,
            "took": round(took, 6),
            "error": settlement.get("error_class"),
        },
    )
