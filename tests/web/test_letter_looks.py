"""How letters look in a real browser: what is written can be read, in a light and in a dark mail program."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from procjobs.letters import Brand, templates
from procjobs.packs.notifications import preview
from tests.browser import Browser, needs_browser

#: Every piece of text whose contrast with what is behind it is under 4.5 to 1 (WCAG 2.1, AA).
FAINT = """
(() => {
  const parts = color => color.match(/[\\d.]+/g).map(Number);
  const light = color => {
    const [r, g, b] = parts(color).map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor;
      if (parts(color).length < 4 || parts(color)[3] > 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.data.trim();
    if (!text || !element.getClientRects().length || element.closest(".preview, .bar, .gap")) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push(text.slice(0, 40));
  }
  return found;
})()
"""
#: The width of what does not fit beyond the window's.
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


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
