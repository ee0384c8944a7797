"""What `procjobs up` tells the world: the file up.json in its data folder.

{"dsn", "url", "mailbox", "demo": {"recipient_id", "group_id", "organization_id", "user_id", "admin_id"} or null,
"tokens": {"user", "admin"}}. The file is there while `up` runs and can be read by its user only.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Facts", "Tokens", "mailbox_of", "read_facts", "remove_facts", "tokens_of", "write_facts"]

_FACTS = "up.json"
_TOKENS = "tokens.json"


@dataclass(frozen=True, slots=True)
class Tokens:
    """Bearer tokens of the demo's user and of its administrator. Never shown by repr()."""

    user: str
    admin: str

    def __repr__(self) -> str:
        return "Tokens(...)"


@dataclass(frozen=True, slots=True)
class Facts:
    """How to reach a running `up`. `demo` is None after `--no-demo`."""

    dsn: str
    url: str
    mailbox: str
    demo: dict[str, str] | None
    tokens: Tokens

    def __repr__(self) -> str:  # the DSN may hold a password
        return f"Facts(url={self.url!r}, mailbox={self.mailbox!r})"


def mailbox_of(data: Path) -> Path:
    """The maildir of the mail catcher."""
    return data / "mail"


def read_facts(data: Path) -> Facts | None:
    """The facts of the `up` that runs over that folder, or None if none does."""
    found = _read(data / _FACTS)
    if found is None:
        return None
    try:
        return Facts(**{**found, "tokens": Tokens(**found["tokens"])})
    except (KeyError, TypeError):
        return None


def write_facts(data: Path, facts: Facts) -> Path:
    """Write up.json: a reader finds the old file or the whole new one."""
    return _write(data / _FACTS, asdict(facts))


def remove_facts(data: Path) -> bool:
    """Remove up.json; True if there was one."""
    try:
        (data / _FACTS).unlink()
    except FileNotFoundError:
        return False
    return True


def tokens_of(data: Path) -> Tokens:
    """The folder's tokens, made on first use: 256 random bits each."""
    path = data / _TOKENS
    found = _read(path)
    try:
        return Tokens(user=str(found["user"]), admin=str(found["admin"]))  # type: ignore[index]
    except (KeyError, TypeError):
        made = Tokens(user=secrets.token_urlsafe(32), admin=secrets.token_urlsafe(32))
        _write(path, asdict(made))
        return made


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, content: dict[str, Any]) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return path
