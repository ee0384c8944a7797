"""The page on which somebody who was invited registers with the demonstration: a real application has its own.

It is where the demo's host_register_url leads, open on this machine only, as what it makes are accounts. With your own
host.sql there is no such page.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from procjobs.db import Calls
from procjobs.errors import DatabaseError, DatabaseUnavailable
from procjobs.web.guard import is_own
from procjobs.web.public import answer

__all__ = ["page"]

_MOST_BYTES = 10_000


async def page(request: Request) -> Response:
    """GET shows the form, the address filled in; POST makes the account, then leads back to the invitation."""
    db, base = request.app.state.db, request.app.state.settings.base_url or ""
    email, onwards = (request.query_params.get(name, "") for name in ("email", "continue"))
    # Nowhere but to the page of an invitation here: an open redirect would lend this address to anybody.
    path = onwards.removeprefix(base)
    if not re.fullmatch(r"/invite/[A-Za-z0-9_-]{43}", path) or not await _is_demo(db):
        raise HTTPException(404, "Nobody registers here.")
    if request.method == "POST":
        if not is_own(request, base):
            raise HTTPException(403, "The request came from another site, so nothing was done.")
        if await db.value("demo_register", p_email=email, p_name=await _name(request)) is None:
            raise HTTPException(400, "That is no e-mail address.")
        return RedirectResponse(path, status_code=303)
    return answer(request, "register.html", code=200, email=email, target=f"{request.url.path}?{request.url.query}")


async def _is_demo(db: Calls) -> bool:
    try:
        return bool(await db.value("demo_is_bound"))
    except DatabaseUnavailable:
        raise HTTPException(503, "The database cannot be reached. Try again in a minute.") from None
    except DatabaseError:  # a web server that works for others may not ask
        return False


async def _name(request: Request) -> str:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BYTES:
            raise HTTPException(413, f"Send at most {_MOST_BYTES} bytes.")
    name = parse_qs(body.decode("utf-8", "replace")).get("name", [""])[0]
    return name.replace("\0", "").encode("utf-8", "replace").decode()
