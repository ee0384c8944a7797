"""The points where a worker can be told to die: what the variable may say, and that nothing happens without it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from procjobs.engine import failpoints
from procjobs.errors import SettingsError
from tests.processes import environment


def test_what_the_variable_says() -> None:
    armed = failpoints.parse("after_claim:kill, before_finish:stop:0.25")
    assert {name: (number.name, chance) for name, (number, chance) in armed.items()} == {
        "after_claim": ("SIGKILL", 1.0),
        "before_finish": ("SIGSTOP", 0.25),
    }


@pytest.mark.parametrize("text", ["after_claim", "nowhere:kill", "after_claim:raise", "after_claim:kill:2", "x", ":"])
def test_anything_else_is_refused_with_the_choice(text: str) -> None:
    with pytest.raises(SettingsError, match="PROCJOBS_FAILPOINT") as refused:
        failpoints.parse(text)
    assert "after_claim" in str(refused.value.hint)


def test_without_it_every_point_is_passed() -> None:
    for name in failpoints.NAMES:
        failpoints.failpoint(name)


@pytest.mark.parametrize(("happened", "code"), [("True", -9), ("[]", 0)])
def test_a_point_kills_if_what_it_waits_for_has_happened(happened: str, code: int) -> None:
    program = f"from procjobs.engine.failpoints import failpoint; failpoint('after_claim', {happened})"
    env = environment(PROCJOBS_FAILPOINT="after_claim:kill")
    assert subprocess.run([sys.executable, "-c", program], env=env, check=False).returncode == code
