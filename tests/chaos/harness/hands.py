"""Workers played by hand in SQL, and a text of a function replaced: what a safeguard is worth, call by call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.chaos.harness.site import Site
from tests.engine.fleet import Claim, Fleet

__all__ = ["MUTATED", "Hands", "Mutation"]

MUTATED = pytest.mark.parametrize("mutated", [False, True], ids=["as it is", "mutated"])


@dataclass
class Hands:
    """Workers played by hand, whose runs are in the executions."""

    site: Site
    fleet: Fleet

    def begin(self, claim: Claim) -> int:
        """The run of a claim begins; its number."""
        run: int = self.site.sql.one(
            "select chaos.begin_run(%s, %s, %s, %s, %s, null)", claim.id, claim.worker, claim.worker, claim.task, None
        )
        return run

    def end(self, run: int) -> None:
        self.site.sql("select chaos.end_run(%s, clock_timestamp())", run)

    def work_off(self, worker: int) -> None:
        """Claim and end what is left."""
        while claims := self.fleet.claim(worker, 5):
            for claim in claims:
                run = self.begin(claim)
                self.end(run)
                self.fleet.finish(claim)


@dataclass(frozen=True)
class Mutation:
    """A scenario, what is replaced where, and the invariant that must be broken by it."""

    name: str
    scenario: Callable[[Hands], None]
    replaced: tuple[tuple[str, str, str], ...]
    breaks: str
    also: str = ""

    def check(self, hands: Hands, mutated: bool) -> None:
        """Play the scenario: as it is nothing is wrong, mutated the invariant is broken."""
        if mutated:
            for function, old, new in self.replaced:
                hands.site.replace(function, old, new)
            if self.also:
                hands.site.sql(self.also)
        self.scenario(hands)
        # No client enqueued them and nobody has an effect here.
        found = hands.site.broken() - {"I2", "I3"}
        assert self.breaks in found if mutated else not found, hands.site.says()
