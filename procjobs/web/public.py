"""Pages that people without an account come to from a mail: one frame, one style, one policy.

What they may do hangs on the token in the address alone. A GET changes nothing, since mail scanners fetch links.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from procjobs.letters import Brand, web_url
from procjobs.web import pages, requests
from procjobs.web.guard import HEADERS

__all__ = ["answer", "brand_css", "failed", "protection", "refused"]

#: Where links in mails lead; what goes wrong there is told to people who know nothing of procjobs.
_OPEN = ("/invite", "/unsubscribe")


def answer(request: Request, template: str, *, code: int, sender: str | None = None, **values: Any) -> Response:
    """A page for everybody, from a template that extends public.html; not kept, not found by search engines.

    sender: whose page it looks like; None is the brand itself, with its logo.
    """
    brand: Brand = request.app.state.brand
    page = pages.render(
        request,
        template,
        code=code,
        brand=brand,
        sender=sender or brand.name,
        logo_url=web_url(brand.logo_url) if sender is None else None,
        **values,
    )
    page.headers.update(protection(brand, code))
    return page


def protection(brand: Brand, code: int) -> dict[str, str]:
    """Headers of every answer to such an address: our own style, the brand's logo, and forms that lead back here."""
    logo = urlsplit(web_url(brand.logo_url) or "")
    images = f"'self' {logo.scheme}://{logo.netloc}" if re.fullmatch(r"[\w.:\[\]-]+", logo.netloc) else "'self'"
    policy = (
        f"default-src 'none'; style-src 'self'; img-src {images}; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    )
    later = {"retry-after": "30"} if code == 503 else {}
    return {"content-security-policy": policy, "x-robots-tag": "noindex, nofollow, noarchive"} | later


async def brand_css(request: Request) -> Response:
    """The brand's colours as a style sheet: a page's own policy allows none within it."""
    brand: Brand = request.app.state.brand
    sheet = (
        f":root {{ --brand: {brand.color}; --brand-ink: {brand.ink}; --brand-link: {brand.link}; }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ --brand-link: {brand.dark_link}; }} }}\n"
    )
    return Response(sheet, media_type="text/css", headers={"cache-control": "public, max-age=3600"})


async def refused(request: Request, error: Exception) -> Response:
    """404 and its like: to people as a page like the others, to programs as JSON, else as `pages.refused` does."""
    assert isinstance(error, HTTPException)
    if requests.is_for_programs(request):
        return requests.refused(request, error)
    if not _is_open(request) or error.status_code not in (404, 405):
        return await pages.refused(request, error)
    page = answer(
        request,
        "lost.html",
        code=error.status_code,
        title="This link does not work",
        words="Perhaps it was cut off: copy the whole link from the mail, or press the button there.",
    )
    page.headers.update(error.headers or {})
    return page


async def failed(request: Request, error: Exception) -> Response:
    """An unforeseen error, which the log tells of: to people without a word about logs."""
    if requests.is_for_programs(request):
        return requests.failed(HEADERS)  # Starlette calls this outside of all middleware
    if not _is_open(request):
        return await pages.failed(request, error)
    page = answer(
        request,
        "lost.html",
        code=500,
        title="Something went wrong",
        words="That is our fault. Please open the link again later.",
    )
    page.headers.update(HEADERS | dict(page.headers))  # Starlette calls this outside of all middleware
    return page


def _is_open(request: Request) -> bool:
    return request.url.path.startswith(_OPEN) and "text/html" in request.headers.get("accept", "")
