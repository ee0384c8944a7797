"""A real browser for tests: Chromium, driven by its DevTools protocol over a pair of pipes."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
#: Marks tests that need one: `apt-get install chromium`.
needs_browser = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("CI") != "true", reason="there is no browser: apt-get install chromium"
)

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-sync",
    "--remote-debugging-pipe",
)  # fmt: skip


_KEYS = {"Tab": 9, "Enter": 13}

#: Every piece of text whose contrast with what is behind it is under 4.5 to 1 (WCAG 2.1, AA), by the colours shown.
FAINT = """
(() => {
  const parts = color => { const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = (front, back) => [0, 1, 2].map(i => front[i] * front[3] + back[i] * (1 - front[3]));
  const light = color => {
    const [r, g, b] = color.map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = matchMedia("(prefers-color-scheme: dark)").matches
    && /dark/.test(getComputedStyle(document.documentElement).colorScheme) ? [18, 18, 18] : [255, 255, 255];
  const behind = element => {
    const layers = [];
    for (; element; element = element.parentElement) layers.push(parts(getComputedStyle(element).backgroundColor));
    return layers.reverse().reduce((back, layer) => over(layer, back), paper);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.data.trim();
    if (!text || !element.getClientRects().length || element.closest(".preview, .bar, .gap")) continue;
    const back = behind(element);
    const [a, b] = [light(over(parts(getComputedStyle(element).color), back)), light(back)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push(text.slice(0, 40));
  }
  return found;
})()
"""
#: The width of what does not fit beyond the window's.
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


class Browser:
    """`async with Browser(folder) as browser`: one page, which `open` and `click` lead on.

    scripts: whether pages may run JavaScript.
    """

    def __init__(self, folder: Path, *, scripts: bool = True, timeout: float = 30.0) -> None:
        self._folder = folder
        self._scripts = scripts
        self._timeout = timeout
        self._number = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        #: Addresses that the page asked for.
        self.requests: list[str] = []

    async def __aenter__(self) -> Self:
        assert CHROMIUM is not None
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # It reads descriptor 3 and writes descriptor 4.
        wired = f'exec {CHROMIUM} "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = await asyncio.create_subprocess_exec(
            "bash", "-c", wired, "chromium", *_FLAGS, f"--user-data-dir={self._folder}", "about:blank",
            pass_fds=(theirs_in, theirs_out), start_new_session=True,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._out = ours_out
        self._reader = asyncio.StreamReader(limit=64 * 1024 * 1024)
        self._pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self._reader), os.fdopen(ours_in, "rb", 0)
        )
        self._listener = asyncio.create_task(self._listen())
        target = (await self._send("Target.createTarget", url="about:blank", session=None))["targetId"]
        attached = await self._send("Target.attachToTarget", targetId=target, flatten=True, session=None)
        self._session: str = attached["sessionId"]
        await self._send("Page.enable")
        await self._send("Network.enable")
        await self._send("Emulation.setScriptExecutionDisabled", value=not self._scripts)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.cancel()
        await asyncio.gather(self._listener, return_exceptions=True)
        self._pipe.close()
        os.close(self._out)
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # its own group: the browser and what it started
        await self._process.wait()

    async def _listen(self) -> None:
        while message := await self._reader.readuntil(b"\0"):
            said = json.loads(message[:-1])
            if "id" in said and not self._answers[said["id"]].done():
                self._answers[said["id"]].set_result(said)
            elif said.get("method") == "Page.loadEventFired":
                self._loaded.set()
            elif said.get("method") == "Network.requestWillBeSent":
                self.requests.append(said["params"]["request"]["url"])

    async def _send(self, method: str, *, session: str | None = "", **params: Any) -> dict[str, Any]:
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        said = await asyncio.wait_for(answer, self._timeout)
        assert "error" not in said, (method, said)
        found: dict[str, Any] = said.get("result", {})
        return found

    async def open(self, url: str) -> None:
        """Go there, and wait until the page has loaded."""
        self._loaded.clear()
        await self._send("Page.navigate", url=url)
        await asyncio.wait_for(self._loaded.wait(), self._timeout)

    async def look(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = await self._send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def text(self) -> str:
        """What the page says."""
        return str(await self.look("document.body.innerText"))

    async def url(self) -> str:
        return str(await self.look("location.href"))

    async def click(self, selector: str) -> None:
        """Press the mouse on the middle of an element, and wait for the page that it leads to."""
        where = await self.look(
            "(r => [r.x + r.width / 2, r.y + r.height / 2])"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        self._loaded.clear()
        for kind in ("mousePressed", "mouseReleased"):
            await self._send("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)
        await asyncio.wait_for(self._loaded.wait(), self._timeout)

    async def press(self, key: str) -> None:
        """Press and let go a key: `Tab`, `Enter`."""
        for kind in ("keyDown", "keyUp"):
            await self._send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=_KEYS[key])

    async def shape(self, width: int, height: int, *, scale: float = 1.0, dark: bool = False) -> None:
        """The size of the window, and whether its user likes it dark."""
        await self._send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self._send("Emulation.setEmulatedMedia", features=[scheme])

    async def picture(self) -> bytes:
        """The window as a PNG."""
        return base64.b64decode((await self._send("Page.captureScreenshot", format="png"))["data"])
