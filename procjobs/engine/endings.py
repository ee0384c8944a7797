"""How runs ended: exceptions as text, and log lines, never with arguments nor with messages, which may quote them."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from procjobs.engine.claimed import Claimed

__all__ = ["describe", "log_settlement", "log_success"]

logger = logging.getLogger("procjobs.worker")


def describe(error: BaseException) -> tuple[str, str, str]:
    """Class, message and traceback of any exception, one whose own text fails included."""
    try:
        message = str(error)
    except Exception:
        message = "(the exception could not be shown)"
    try:
        trace = "".join(traceback.format_exception(error))
    except Exception:
        trace = "".join(traceback.format_tb(error.__traceback__))
    return type(error).__qualname__, message, trace


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
