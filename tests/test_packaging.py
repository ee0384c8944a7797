"""The wheel: carries everything, and works where there is no source tree."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", target], cwd=ROOT, check=True)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the wheel in it; what it depends on is seen from the present one."""
    home = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(home)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-qq", "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home


def files(folder: Path, *suffixes: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix in suffixes}


@pytest.mark.slow
def test_the_wheel_carries_everything(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"procjobs/_sql/{name}" for name in files(ROOT / "sql", ".sql")}
    wanted |= {f"procjobs/_migrations/{name}" for name in files(ROOT / "migrations", ".sql", ".py")}
    wanted |= {
        f"procjobs/{path.relative_to(ROOT / 'procjobs')}"
        for path in (ROOT / "procjobs").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted - names == set()
    strangers = {name for name in names if not name.startswith("procjobs")}
    assert strangers == set()


@pytest.mark.slow
def test_it_migrates_from_the_wheel_alone(installed: Path, empty_dsn: str, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = (
        "import sys; from procjobs import migrate; print(migrate.resources().sql);"
        " r = migrate.migrate(sys.argv[1]); print(r.changed, migrate.check(sys.argv[1]))"
    )
    told = subprocess.run(
        [installed / "bin" / "python", "-c", script, empty_dsn],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    place, outcome = told.stdout.splitlines()
    assert Path(place).is_relative_to(installed)
    assert outcome == "True []"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "command", "extra"),
    [
        ("starlette", "web", "web"),
        ("psycopg", "jobs", "binary"),
    ],
)
def test_an_extra_that_is_missing_is_named(
    installed: Path, tmp_path: Path, package: str, command: str, extra: str
) -> None:
    hidden = "ImportError('no pq wrapper available.')" if package == "psycopg" else "ModuleNotFoundError(name=name)"
    script = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {package!r}: raise {hidden}\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "from procjobs.cli import main\n"
        f"main([{command!r}, '--dsn', 'postgresql://me@127.0.0.1:1/x'])\n"
    )
    said = subprocess.run(
        [installed / "bin" / "python", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert said.returncode == 1
    assert said.stderr.count("\n") == 1 and f"procjobs[{extra}]" in said.stderr, said.stderr


@pytest.mark.slow
def test_the_command_is_installed(installed: Path, tmp_path: Path) -> None:
    from procjobs import __version__

    told = subprocess.run(
        [installed / "bin" / "procjobs", "--version"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert __version__ in told.stdout
