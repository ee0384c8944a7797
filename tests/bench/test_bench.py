"""The benchmark measures what it says: both contenders, each with every job done, on tables of each shape."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from procjobs.bench import drain
from procjobs.bench.command import bench

pytestmark = pytest.mark.slow


@pytest.fixture
def small(monkeypatch):
    """The same contenders with few jobs."""
    contenders = [replace(c, jobs=30 if c.kind == "stock" else 300) for c in drain.CONTENDERS if c.concurrency != 100]
    monkeypatch.setattr("procjobs.bench.command.CONTENDERS", contenders)
    shapes = [drain.SHAPES[0], drain.SHAPES[1], drain.SHAPES[3]]
    monkeypatch.setattr("procjobs.bench.command.SHAPES", shapes)
    return contenders


def test_every_contender_has_a_rate_and_is_set_beside_stock(cluster, small, tmp_path):
    saved = tmp_path / "figures.json"
    ran = CliRunner().invoke(bench, ["--dsn", cluster.dsn(), "--rounds", "1", "--json", "--save", str(saved)])
    assert ran.exit_code == 0, ran.output
    figures = json.loads(saved.read_text())
    results = {(r["contender"], r["shape"]): r for r in figures["results"]}
    assert {name for name, shape in results if shape == "empty tables"} == {c.name for c in small}
    assert {shape for _, shape in results} == {"empty tables", "100,000 scheduled", "10,000 on one lock"}
    assert all(r["jobs_per_second"] > 0 for r in results.values())
    assert results[small[0].name, "empty tables"]["times_stock"] == 1.0
    assert results[small[-1].name, "empty tables"]["times_stock"] > 1.0


def test_jobs_left_over_are_an_error_not_a_rate(cluster, monkeypatch):
    contender = replace(drain.CONTENDERS[1], jobs=50)
    monkeypatch.setattr(drain, "_run_subjects", lambda *args, **options: None)
    with pytest.raises(RuntimeError, match="50 of 50 jobs were left over"):
        drain.run(cluster.dsn(), [contender], drain.SHAPES[:1], 1, lambda words: None)
