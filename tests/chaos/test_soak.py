"""The soak itself, for some seconds: it ends, it counts, and nothing is wrong. `scripts/chaos` runs it for longer."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.soak.__main__ import soak


def test_a_short_soak(folder: Path) -> None:
    place = folder / "soak"
    place.mkdir(mode=0o711)
    report = soak(minutes=0.1, seed=20, workers=2, folder=place)
    assert report.ok, report.text()
    assert report.acknowledged > 20
    assert report.faults
    assert sum(report.ended.values()) >= report.acknowledged
