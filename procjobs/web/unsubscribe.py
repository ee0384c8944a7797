"""Unsubscribing: where the links in mails lead. Open to everybody who has a link; the token in it is all that counts.

GET shows what would stop and changes nothing, since mail scanners fetch links. POST does it: from the button, or from a
mail program's own one (RFC 8058), which sends no cookie and no origin, and follows no redirect.
"""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from procjobs.errors import DatabaseUnavailable
from procjobs.web.public import answer

__all__ = ["page", "undo"]

#: What SQL would look at at all.
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,1000}")


async def page(request: Request) -> Response:
    """GET shows what would stop; after a POST it has stopped."""
    if request.method == "POST":
        return await _answer(request, "unsubscribe", "stopped")
    return await _answer(request, "find_subscription", "ask")


async def undo(request: Request) -> Response:
    """After a POST it goes on; whoever opens the address again is shown what is so."""
    if request.method == "POST":
        return await _answer(request, "resubscribe", "resumed")
    return await page(request)


async def _answer(request: Request, function: str, state: str) -> Response:
    found: dict[str, Any] | None = None
    code, token = 200, request.path_params["token"]
    try:
        if _TOKEN.fullmatch(token):
            rows = await request.app.state.db.rows(function, token=token)
            found = rows[0] if rows else None
    except DatabaseUnavailable:
        state, code = "later", 503
    else:
        if found is None:
            state, code = "unknown", 404
        elif state == "ask" and not found["subscribed"]:
            state = "stopped"
        elif state == "resumed" and not found["subscribed"]:
            state = "gone"
    return answer(
        request,
        "unsubscribe.html",
        code=code,
        sender=found["organization_name"] if found else None,
        state=state,
        found=found,
        token=token,
    )
