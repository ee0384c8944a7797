"""Benchmarks: stock Procrastinate and procjobs side by side, on one server, in one run.

Rates are of jobs that do nothing, from the first claim to the last acknowledgement, both read from the database.
Machines are noisy: rounds of all contenders are interleaved, medians are shown, and only ratios within one run mean
anything.
"""

from __future__ import annotations

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run the benchmark with these command line arguments; the exit code."""
    from procjobs.bench.command import bench

    return int(bench.main(arguments, prog_name="procjobs bench", standalone_mode=False) or 0)
