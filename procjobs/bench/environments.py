"""Where the peers live: environments of their own in a cache folder, made on demand, never dependencies of procjobs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from procjobs.bench.contenders import Peer

__all__ = ["Environments", "NotInstalled"]

_SUBJECTS = Path(__file__).parent / "subjects"
_PATIENCE = 600


class NotInstalled(Exception):
    """Why a peer cannot be measured here."""


class Environments:
    """Installs peers below `folder` when they are asked for, and knows how to start them."""

    def __init__(self, folder: Path | None = None) -> None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.folder = folder or Path(cache) / "procjobs-bench"

    def prepare(self, peer: Peer) -> str:
        """Install the peer unless it is there; its version. Raises NotInstalled."""
        if not peer.package:
            return self._own_version(peer)
        return self._prepare_node(peer) if peer.node else self._prepare_python(peer)

    def command(self, peer: Peer, task: str) -> list[str]:
        """What to start; the verb, the DSN and the rest come after it."""
        if peer.node:
            return ["node", str(_SUBJECTS / peer.program)]
        if peer.package:
            return [str(self._python(peer)), str(_SUBJECTS / peer.program)]
        return [sys.executable, "-m", "procjobs.bench.subjects.app", peer.program, task]

    def environment(self) -> dict[str, str]:
        """The environment variables of the programs."""
        return {**os.environ, "PROCJOBS_BENCH_NODE": str(self.folder / "node")}

    def _own_version(self, peer: Peer) -> str:
        if peer.program != "pgbench":
            return version({"stock": "procrastinate"}.get(peer.program, "procjobs"))
        if shutil.which("pgbench") is None:
            raise NotInstalled("there is no pgbench on the path")
        return _run(["pgbench", "--version"]).split()[2]

    def _prepare_python(self, peer: Peer) -> str:
        python = self._python(peer)
        if not python.exists():
            _run([_interpreter(peer.python), "-m", "venv", str(python.parent.parent)])
        ask = f"from importlib.metadata import version; print(version({peer.package!r}))"
        try:
            return _run([str(python), "-c", ask])
        except NotInstalled:
            _run([str(python), "-m", "pip", "install", "--quiet", peer.package, *peer.extras])
        return _run([str(python), "-c", ask])

    def _python(self, peer: Peer) -> Path:
        return self.folder / peer.package / "bin" / "python"

    def _prepare_node(self, peer: Peer) -> str:
        if shutil.which("npm") is None:
            raise NotInstalled("there is no npm on the path")
        folder = self.folder / "node"
        found = folder / "node_modules" / peer.package / "package.json"
        if not found.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), peer.package])
        return str(json.loads(found.read_text())["version"])


def _interpreter(least: tuple[int, int]) -> str:
    if sys.version_info >= least:
        return sys.executable
    home = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    names = [f"python3.{minor}" for minor in range(least[1], least[1] + 4)]
    for candidate in [*names, *map(str, sorted(home.glob("versions/*/bin/python3.??")))]:
        probe = f"import sys; sys.exit(sys.version_info < {least})"
        if shutil.which(candidate) and subprocess.run([candidate, "-c", probe], capture_output=True).returncode == 0:
            return candidate
    raise NotInstalled(f"it needs Python {least[0]}.{least[1]}, which is not here")


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"{command[0]}: {error}") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line and "WARN" not in line.upper()]
        raise NotInstalled(
            f"{' '.join(Path(command[0]).name.split() + command[1:3])}: {said[-1] if said else 'failed'}"
        )
    return done.stdout.strip()
