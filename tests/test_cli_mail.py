"""procjobs mail preview, procjobs mail suppressed."""

from __future__ import annotations

from pathlib import Path

import pytest

from procjobs.letters import templates
from tests.test_cli import Shell, bare, elsewhere, shell

__all__ = ["bare", "elsewhere", "shell"]


def test_the_command_lists_and_shows_templates(bare: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROCJOBS_BRAND_NAME", "Harbour Lane")
    assert [row["template"] for row in bare.json("mail", "preview")] == templates()
    assert "welcome" in bare("mail", "preview")
    assert bare("mail", "preview", "invoice").startswith("Subject: Invoice 2026-0117: 136.25")
    html = bare("mail", "preview", "invoice", "--html")
    assert html.startswith("<!DOCTYPE html>")
    letter = bare.json("mail", "preview", "invoice")
    assert set(letter) == {"subject", "text", "html"} and "Harbour Lane" in letter["text"]
    path = tmp_path / "invoice.html"
    assert bare("mail", "preview", "invoice", "--html", "--to", path) == f"wrote {path}\n"
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert "there is no template nonsense" in bare.complains("mail", "preview", "nonsense")
    assert "cannot be written" in bare.complains("mail", "preview", "tips", "--to", tmp_path / "none" / "x")


def test_the_command_lists_adds_and_removes_suppressed_addresses(shell: Shell) -> None:
    assert shell("mail", "suppressed") == "No address is suppressed.\n"
    add = ("mail", "suppressed", "add")
    assert shell(*add, "Ann@example.org", "--reason", "asked us to") == "Ann@example.org is suppressed\n"
    assert shell(*add, "ann@example.org") == "ann@example.org was suppressed already\n"
    assert "is not an e-mail address" in shell.complains(*add, "nobody")
    assert "asked us to" in shell("mail", "suppressed", "list", "--matching", "ANN")
    assert [row["address"] for row in shell.json("mail", "suppressed", "list")] == ["ann@example.org"]
    remove = ("mail", "suppressed", "remove", "ann@example.org")
    assert shell(*remove) == "ann@example.org gets mail again\n"
    assert shell(*remove) == "ann@example.org was not suppressed\n"
