"""The pictures in docs/images: mails and pages as a browser shows them. `scripts/pictures` makes them.

Each pane is a picture of its own window, since light and dark are the window's; a page of images puts them together.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from procjobs import demo
from procjobs.db import Database
from procjobs.embedded import EmbeddedPostgres
from procjobs.letters import Brand
from procjobs.migrate import migrate
from procjobs.packs.notifications import preview
from procjobs.settings import Settings
from procjobs.web.app import create_app
from procjobs.web.server import address_of, listen
from tests.browser import Browser
from tests.web.test_invitations import serving

IMAGES = Path(__file__).parent.parent / "docs" / "images"
TOKEN = "t" * 43
#: Windows of mails: width in pixels, and whether it is dark.
WINDOWS = ((700, False), (700, True), (360, False))


@dataclass(frozen=True, slots=True)
class Pane:
    """One window: its PNG, taken at double density, and its width and height in pixels of the page."""

    png: bytes
    width: int
    height: int


async def take(browser: Browser, width: int, height: int, *, dark: bool = False) -> Pane:
    """The page that is open, in a window of that size."""
    await browser.shape(width, height, scale=2, dark=dark)
    return Pane(await browser.picture(), width, height)


async def put_together(
    browser: Browser, folder: Path, panes: list[Pane], *, zoom: float, framed: bool = False
) -> bytes:
    """The panes beside one another as one PNG. framed: with room and round corners around each."""
    room, gap, corner = (26, 28, 14) if framed else (0, 8, 0)
    images = "".join(
        f'<img width="{pane.width * zoom:.0f}" src="data:image/png;base64,{base64.b64encode(pane.png).decode()}">'
        for pane in panes
    )
    style = (
        f"margin:0;padding:{room}px;display:flex;gap:{gap}px;align-items:center;width:max-content;background:#c9cdd8"
    )
    page = folder / "panes.html"
    page.write_text(f'<!doctype html><style>img{{border-radius:{corner}px}}</style><body style="{style}">{images}')
    width = 2 * room + gap * (len(panes) - 1) + sum(round(pane.width * zoom) for pane in panes)
    await browser.shape(max(width, 600), 600)
    await browser.open(page.as_uri())
    height = await browser.look("Math.floor(document.body.getBoundingClientRect().height)")
    await browser.shape(width, height)
    return await browser.picture()


async def letter(browser: Browser, folder: Path, template: str, brand: Brand) -> bytes:
    """A letter in a light and in a dark mail program, and on a phone."""
    page = folder / f"{template}.html"
    page.write_text(preview(template, brand).html)
    await browser.open(page.as_uri())
    heights = []
    for width, dark in WINDOWS:
        await browser.shape(width, 100, dark=dark)
        heights.append(int(await browser.look("document.documentElement.scrollHeight")))
    panes = [await take(browser, width, max(heights), dark=dark) for width, dark in WINDOWS]
    return await put_together(browser, folder, panes, zoom=0.7)


async def mail(browser: Browser, folder: Path) -> bytes:
    return await letter(browser, folder, "daily_report", Brand("Harbour Lane"))


async def invitation_mail(browser: Browser, folder: Path) -> bytes:
    return await letter(browser, folder, "invitation", Brand("Harbour Lane", "#0f766e"))


@asynccontextmanager
async def invited(folder: Path) -> AsyncIterator[str]:
    """The address of a page on which Nina, who has an account, is invited: a site and a database of its own."""
    with EmbeddedPostgres(folder / "pg") as server:
        dsn = server.create_database("pictures")
        migrate(dsn)
        async with Database(dsn) as db:
            facts = await demo.seed(db)
        with psycopg.connect(dsn) as connection:
            connection.execute("insert into procjobs_demo.people (name, email) values ('Nina', 'nina@new.example')")
            connection.execute(
                "select procjobs.create_invite(%s, 'nina@new.example', 'member', %s)",
                (facts.organization_id, facts.user_id),
            )
            connection.execute(
                "insert into procjobs.letter_secrets select sha256(%s::bytea), notification_id, id, now() "
                "from procjobs.pending_invites where email = 'nina@new.example'",
                (TOKEN,),
            )
        listener = listen("127.0.0.1", 0)
        site = address_of(listener)
        settings = Settings(base_url=site, brand_name="Harbour Lane Studio", home_url="https://app.example.com/")
        async with serving(create_app(settings, dsn), listener):
            yield f"{site}/invite/{TOKEN}"


async def invitation(browser: Browser, folder: Path) -> bytes:
    async with invited(folder) as link:
        await browser.open(link)
        panes = [await take(browser, 1000, 710), await take(browser, 360, 666)]
        await browser.click("button")
        panes.append(await take(browser, 360, 666, dark=True))
        return await put_together(browser, folder, panes, zoom=0.66, framed=True)


PICTURES: dict[str, Callable[[Browser, Path], Awaitable[bytes]]] = {
    "mail": mail,
    "invitation-mail": invitation_mail,
    "invitation": invitation,
}


async def make(names: list[str], to: Path, folder: Path) -> None:
    """Write these pictures into `to`; what they need meanwhile goes into `folder`."""
    async with Browser(folder / "browser", scripts=False) as browser:
        for picture in names:
            (to / f"{picture}.png").write_bytes(await PICTURES[picture](browser, folder))


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/pictures", description="Makes the pictures in docs/images anew.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(PICTURES)}; all if none is named")
    parser.add_argument("--to", type=Path, default=IMAGES, metavar="FOLDER", help="where to; docs/images if not said")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.names) - set(PICTURES)):
        parser.error(f"there is no picture {', '.join(unknown)}: choose from {', '.join(PICTURES)}")
    with tempfile.TemporaryDirectory(prefix="pj-") as folder:
        Path(folder).chmod(0o711)  # passable for the user that a server runs as under root
        asyncio.run(make(chosen.names or list(PICTURES), chosen.to, Path(folder)))


if __name__ == "__main__":
    main()
