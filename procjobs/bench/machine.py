"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

import psycopg

__all__ = ["describe"]


def describe(dsn: str, bindir: Path | None = None) -> dict[str, str]:
    """Processors, memory, how long a flush to disk takes, what else was running, versions."""
    with psycopg.connect(dsn) as connection:
        postgres = connection.info.parameter_status("server_version") or ""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processors": str(os.cpu_count()),
        "memory": f"{pages / 1024**3:.0f} GiB",
        "flush": _flush(bindir),
        "load": f"{os.getloadavg()[0]:.1f}",
        "postgresql": postgres,
        "python": platform.python_version(),
        "psycopg": version("psycopg"),
    }


def _flush(bindir: Path | None) -> str:
    program = shutil.which("pg_test_fsync", path=str(bindir) if bindir else None) or shutil.which("pg_test_fsync")
    if program is None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_test_fsync"))
        program = str(found[-1]) if found else None
    if program is None:
        return "not measured: there is no pg_test_fsync"
    with tempfile.TemporaryDirectory(prefix="procjobs-bench-") as folder:
        command = [program, "--secs-per-test=1", f"--filename={folder}/flush"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found_line = re.search(r"fdatasync\s.*?(\d+) usecs/op", done.stdout)
    return f"{found_line.group(1)} us (fdatasync)" if found_line else "not measured"
