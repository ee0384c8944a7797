"""What the client knows, outside PostgreSQL: one line of JSON for every step, on disk before the next one is taken."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Account", "Ledger"]


@dataclass
class Account:
    """A ledger read back. Keys that were attempted and nothing else said about are unknown too."""

    attempted: set[str] = field(default_factory=set)
    #: Job id by key: the database said that the commit succeeded.
    acknowledged: dict[str, int] = field(default_factory=dict)
    #: The database said no: nothing may be there.
    refused: set[str] = field(default_factory=set)
    #: The database said that another job has its unique key: nothing may be there.
    duplicates: set[str] = field(default_factory=set)
    #: Callbacks of batches that the database acknowledged: there when everything has come to rest.
    promised: set[str] = field(default_factory=set)

    @property
    def unknown(self) -> set[str]:
        """The answer never came: one job may be there, or none."""
        return self.attempted - self.refused - self.duplicates - self.promised - self.acknowledged.keys()


class Ledger:
    """Appends to a file with fsync; safe for several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def attempted(self, keys: Sequence[str]) -> None:
        """About to be sent."""
        self._write({"step": "attempted", "keys": list(keys)})

    def acknowledged(self, keys: Sequence[str], jobs: Sequence[int]) -> None:
        self._write({"step": "acknowledged", "keys": list(keys), "jobs": list(jobs)})

    def refused(self, keys: Sequence[str]) -> None:
        self._write({"step": "refused", "keys": list(keys)})

    def duplicates(self, keys: Sequence[str]) -> None:
        """Another job has their unique key."""
        self._write({"step": "duplicates", "keys": list(keys)})

    def promised(self, keys: Sequence[str]) -> None:
        """Callbacks of batches that were acknowledged."""
        self._write({"step": "promised", "keys": list(keys)})

    def unknown(self, keys: Sequence[str]) -> None:
        self._write({"step": "unknown", "keys": list(keys)})

    def _write(self, entry: dict[str, object]) -> None:
        with self._lock:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def read(self) -> Account:
        """What the file says."""
        account = Account()
        with self._path.open(encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                match entry["step"]:
                    case "attempted":
                        account.attempted.update(entry["keys"])
                    case "acknowledged":
                        account.acknowledged.update(zip(entry["keys"], entry["jobs"], strict=True))
                    case "refused":
                        account.refused.update(entry["keys"])
                    case "duplicates":
                        account.duplicates.update(entry["keys"])
                    case "promised":
                        account.promised.update(entry["keys"])
        return account

    def close(self) -> None:
        self._file.close()
