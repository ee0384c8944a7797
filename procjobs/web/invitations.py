"""The page that the link in an invitation's mail leads to: a look at it, and its acceptance. Open to everybody.

The link is the right to accept: it came to the invited address, so whoever has an account with that address joins, and
nobody logs in here. A GET changes nothing, since mail programs and scanners fetch links; a POST accepts.
"""

from __future__ import annotations

import re
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from procjobs.errors import DatabaseUnavailable
from procjobs.letters import local_time, web_url
from procjobs.packs.invitations import Look, accept, look, register_url
from procjobs.web.guard import is_own
from procjobs.web.public import answer, protection

__all__ = ["page"]

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_NOTHING = Look("not_found", None, None, None, None, None, None, None, None, None, None, None)
#: Over for good is 410; states that are not here are 200.
_CODES = {
    "not_found": 404,
    "expired": 410,
    "revoked": 410,
    "replaced": 410,
    "accepted_by_other": 410,
    "gone": 410,
    "elsewhere": 403,
    "unavailable": 503,
}


async def page(request: Request) -> Response:
    """GET shows what the invitation is about, POST accepts it; as HTML, or as JSON for programs that ask for it."""
    token = request.path_params["token"]
    if not _TOKEN.fullmatch(token):
        return _answer(request, _NOTHING)
    if request.method == "POST" and not is_own(request, request.app.state.settings.base_url):
        return _answer(request, replace(_NOTHING, state="elsewhere"))
    db = request.app.state.db
    try:
        state = (await accept(db, token)).state if request.method == "POST" else None
        found = await look(db, token)
        register = await _register(request, token) if found.state == "unknown_person" else None
    except DatabaseUnavailable:
        return _answer(request, replace(_NOTHING, state="unavailable"))
    return _answer(request, replace(found, state=state or found.state), register)


async def _register(request: Request, token: str) -> str | None:
    """Where to register: a web address, or a path below base_url."""
    base: str = request.app.state.settings.base_url or ""
    path = request.url_for("invite", token=token).path
    url = await register_url(request.app.state.db, token, f"{base}{path.removesuffix(token)}")
    if url and re.fullmatch(r"/(?!/)[^\s\"'<>\\]*", url):
        return f"{base}{url}"
    return web_url(url)


def _answer(request: Request, found: Look, register: str | None = None) -> Response:
    code = _CODES.get(found.state, 200)
    if "application/json" in request.headers.get("accept", ""):
        shown = {name: getattr(found, name) for name in ("state", "organization", "inviter", "email", "role")}
        return JSONResponse(
            {**shown, "register_url": register}, status_code=code, headers=protection(request.app.state.brand, code)
        )
    return answer(
        request,
        "invite.html",
        code=code,
        invite=found,
        until=local_time(found.expires_at, found.timezone or "UTC") if found.expires_at else None,
        register=register,
        home_url=request.app.state.settings.home_url,
    )
