"""The house: what lies where, and what must not be anywhere."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

import procjobs

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "procjobs"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())

MODULES = sorted(found.name for found in pkgutil.walk_packages([str(PACKAGE)], "procjobs."))
#: Programs that run in the environment of another queue, which the benchmark makes for it.
FOREIGN = "procjobs.bench.subjects."
SOURCES = sorted(path.relative_to(ROOT) for path in PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Top-level names of everything a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize(
    "name", [name for name in MODULES if not name.endswith("__main__") and not name.startswith(FOREIGN)]
)
def test_what_a_module_exports_is_there_and_sorted(name: str) -> None:
    module = importlib.import_module(name)
    exported = list(getattr(module, "__all__", []))
    assert all(hasattr(module, item) for item in exported)
    assert len(set(exported)) == len(exported)


def test_the_public_names_are_sorted() -> None:
    assert procjobs.__all__ == sorted(procjobs.__all__)
    assert all(hasattr(procjobs, name) for name in procjobs.__all__)


def test_sqlalchemy_and_alembic_stay_in_migrate() -> None:
    using = {str(path) for path in SOURCES if imports(ROOT / path) & {"sqlalchemy", "alembic"}}
    assert using == {"procjobs/migrate.py"}


def test_modules_are_nouns() -> None:
    assert not {path.stem for path in SOURCES} & {"utils", "helpers", "common", "manager", "misc"}


def test_the_version_is_said_once() -> None:
    assert procjobs.__version__ == PROJECT["project"]["version"]


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").iterdir()))
def test_scripts_can_be_run(script: str) -> None:
    path = ROOT / "scripts" / script
    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
class TestLocks:
    def test_it_names_no_host(self, lock: str) -> None:
        text = (ROOT / lock).read_text()
        assert "://" not in text
        assert not re.search(r"^\s*(-i|--index|--extra-index|--find-links|-f)\b", text, re.MULTILINE)

    def test_everything_is_pinned_by_hash(self, lock: str) -> None:
        entries = re.split(r"\n(?=\S)", (ROOT / lock).read_text().strip())
        assert entries
        for entry in entries:
            assert re.match(r"[\w.-]+==\S+", entry)
            assert "--hash=sha256:" in entry

    def test_it_has_what_the_project_asks_for(self, lock: str) -> None:
        pinned = {match.lower() for match in re.findall(r"^([\w.-]+)==", (ROOT / lock).read_text(), re.MULTILINE)}
        extras = PROJECT["project"]["optional-dependencies"]
        asked = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["build"]]
        chosen = ["up", "binary", "web", "email", "embedded", "catcher", *(["dev"] if "dev" in lock else [])]
        asked += [need for extra in chosen for need in extras[extra]]
        names = {re.split(r"[\[<>=~!; ]", need)[0].lower() for need in asked} - {"procjobs"}
        assert names - pinned == set()


def tracked() -> list[Path]:
    """Files of the repository; outside of one (an archive), whatever is here."""
    told = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if told.returncode == 0 and told.stdout:
        return [ROOT / line for line in told.stdout.splitlines()]
    skipped = {".venv", "__pycache__", ".git"}
    return [path for path in ROOT.rglob("*") if path.is_file() and not skipped & set(path.parts)]


def test_no_file_names_this_machine_or_a_registry() -> None:
    """Neither the folder we stand in nor the place packages were fetched from."""
    registry = r"(?:pypi|registry|mirror)[\w.-]*(?:\.\w+)?/simple|pythonhosted"
    for path in tracked():
        if path.name not in {"test_layout.py", "test_docs.py"} and path.is_file():  # they spell out what to look for
            text = path.read_bytes().decode(errors="ignore")
            assert f"{ROOT}/" not in text, path
            assert not re.search(registry, text), path


def test_files_are_small_enough_to_read() -> None:
    long = {str(path): n for path in SOURCES if (n := len((ROOT / path).read_text().splitlines())) > 600}
    assert long == {}
