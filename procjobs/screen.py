"""The first screen of `procjobs up`: where everything is, and what to try."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from procjobs.facts import Facts

__all__ = ["screen"]


def screen(facts: Facts, *, data: Path, smtp: str, seconds: float, own_server: bool) -> None:
    """Print how to reach what runs.

    smtp:       host and port of the mail catcher.
    seconds:    how long the start took.
    own_server: whether the DSN was given; it may hold a password and is not shown then.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    console.print(Text.assemble("\n  ", ("procjobs is up", "bold green"), f"  ({seconds:.1f} s)\n"))
    lines = [("Pages", facts.url), ("psql", command("psql", data))]
    if not own_server:
        lines.append(("", f"psql {shlex.quote(facts.dsn)}"))
    lines += [
        ("Mail", f"{command('mail', data)}   or {facts.url}/mail"),
        ("", f"all mail stays in {facts.mailbox}; SMTP for your own programs: {smtp}"),
        ("Facts", str(data / "up.json")),
    ]
    for title, value in lines:
        console.print(Text.assemble("  ", (f"{title:<7}", "bold cyan"), value))
    console.print("\n  Try it in psql:\n")
    console.print(Text(statement(facts), style="bold"))
    console.print("\n  Ctrl-C stops everything; the data stays.\n")


def statement(facts: Facts) -> str:
    """SQL that shows something at once."""
    if facts.demo is None:
        return "  select * from procjobs.queues;"
    return (
        "  select procjobs.enqueue_notification_job(\n"
        f"    '{facts.demo['recipient_id']}'::uuid, '{facts.demo['group_id']}'::uuid, null,\n"
        "    'immediate', 'normal', 'email', '{\"subject\": \"Test\", \"body\": \"Hello!\"}'::jsonb, 0);"
    )


def command(name: str, data: Path) -> str:
    """How to call procjobs from here, e.g. `.venv/bin/procjobs psql --data DIR`, shortened where possible."""
    where = "" if data == Path(".procjobs").absolute() else f" --data {shlex.quote(str(data))}"
    return f"{_program()} {name}{where}"


def _program() -> str:
    here = Path(sys.argv[0]).absolute()
    if here.name == "__main__.py":
        return "python -m procjobs"
    found = shutil.which("procjobs")
    if found and Path(found).resolve() == here.resolve():
        return "procjobs"
    return shlex.quote(min(os.path.relpath(here), str(here), key=len))
