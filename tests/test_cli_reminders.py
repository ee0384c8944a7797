"""procjobs reminders."""

from __future__ import annotations

from typing import Any

from tests.test_cli import Shell, bare, elsewhere, shell

__all__ = ["bare", "elsewhere", "shell"]


def test_reminders_are_run_and_listed_and_their_steps_are(shell: Shell, sql: Any) -> None:
    sql("select procjobs.seed_demo()")
    assert "No reminder has been due" in shell("reminders")
    assert shell("reminders", "run", "payment") == "1 payment reminder created\n"
    assert shell.json("reminders", "run") == {"payment": 0, "event": 1}
    said = shell("reminders")
    assert said == shell("reminders", "list")
    assert "Northern Lights" in said and "Liam O'Connor" in said and "4200.00" in said
    (event,) = shell.json("reminders", "list", "--kind", "event", "--limit", "5")
    assert (event["about"], event["person_name"], event["mail_status"]) == (
        "Screening of the third cut",
        "Maya Lindgren",
        "pending",
    )
    assert [step["name"] for step in shell.json("reminders", "steps", "--kind", "payment")] == [
        "first", "second", "third", "weekly",
    ]  # fmt: skip
    assert "chosen" in shell("reminders", "steps")
