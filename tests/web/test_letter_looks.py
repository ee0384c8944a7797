"""How letters look in a real browser: what is written can be read, in a light and in a dark mail program."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from procjobs.letters import Brand, templates
from procjobs.packs.notifications import preview
from tests.browser import FAINT, TOO_WIDE, Browser, needs_browser


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    async with Browser(tmp_path / "browser") as opened:
        yield opened


@needs_browser
async def test_every_letter_can_be_read_light_and_dark_and_fits_a_phone(browser: Browser, tmp_path: Path) -> None:
    wrong = {}
    for name in templates():
        letter = tmp_path / f"{name}.html"
        letter.write_text(preview(name, Brand("Harbour Lane", "#2f5fd0")).html)
        for dark in (False, True):
            await browser.shape(375, 800, dark=dark)
            await browser.open(letter.as_uri())
            wrong[name, "dark" if dark else "light"] = await browser.look(FAINT), await browser.look(TOO_WIDE)
    assert wrong == dict.fromkeys(wrong, ([], 0))
    assert len(wrong) >= 24  # or nothing was looked at
