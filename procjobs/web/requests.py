"""POST /api/notifications and /api/invitations: an e-mail is asked for and queued, and the answer says so with 202.

Nothing is sent in the request: while the database is away the answer is 503, however well the mail server is.
The caller is a program, your application's server as a rule: JSON in and out, a bearer token, no cookie.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import UUID

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from procjobs import watch
from procjobs.errors import DatabaseError, DatabaseUnavailable, QueueUnavailable
from procjobs.packs.requests import Queued, submit_invite, submit_notification
from procjobs.web.guard import is_own

__all__ = ["failed", "invitations", "is_for_programs", "notifications", "refused"]

#: Four times what the content of a notification may have.
_MOST_BYTES = 1024 * 1024

Submit = Callable[..., Awaitable[Queued]]
Read = Callable[[Any], Any]


def _uuid(value: Any) -> str:
    try:
        return str(UUID(value))
    except (ValueError, TypeError, AttributeError):
        raise ValueError("write a UUID") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("write a text")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("write a text without halves of surrogate pairs")
    return value


def _content(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or "\\u0000" in json.dumps(value):
        raise ValueError('write an object without NUL characters, {"subject": "...", "body": "..."}')
    return value


def _minutes(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError("write a whole number from 0")
    return value


#: Field of the body -> argument of the SQL function, how it is read, whether it must be there.
_NOTIFICATION: dict[str, tuple[str, Read, bool]] = {
    "recipient_id": ("recipient", _uuid, True),
    "content": ("content", _content, False),
    "group_id": ("group", _uuid, False),
    "update_id": ("update", _uuid, False),
    "notification_type": ("notification_type", _text, False),
    "urgency": ("urgency", _text, False),
    "delivery_method": ("delivery_method", _text, False),
    "delay_minutes": ("delay_minutes", _minutes, False),
    "requested_by": ("requested_by", _uuid, False),
}
_INVITATION: dict[str, tuple[str, Read, bool]] = {
    "organization_id": ("organization", _uuid, True),
    "email": ("email", _text, True),
    "role": ("role", _text, True),
    "invited_by": ("invited_by", _uuid, True),
    "expires_in": ("expires_in", _text, False),
}


async def notifications(request: Request) -> JSONResponse:
    """Queue a notification: fields as in procjobs.submit_notification.

    With the user's token it needs `requested_by`, the person who asks, and goes to that person's recipients only.
    """
    required = {"requested_by"} if request.app.state.guard.is_user(request) else set()
    return await _answer(request, _NOTIFICATION, submit_notification, required, {"content": {}})


async def invitations(request: Request) -> JSONResponse:
    """Invite an address: fields as in procjobs.submit_invite. `invited_by` must be allowed to give that role there."""
    return await _answer(request, _INVITATION, submit_invite, set(), {})


async def _answer(
    request: Request,
    shape: Mapping[str, tuple[str, Read, bool]],
    submit: Submit,
    required: set[str],
    defaults: dict[str, Any],
) -> JSONResponse:
    if not request.app.state.guard.opens(request):
        return _sorry(
            401,
            "a token is needed",
            hint="send the header Authorization: Bearer ... with user_token or admin_token",
            headers={"www-authenticate": "Bearer"},
        )
    try:
        given = _read(await _body(request), shape, required)
    except HTTPException as error:
        return _sorry(error.status_code, error.detail)
    try:
        async with asyncio.timeout(watch.DEADLINE):
            queued = await submit(request.app.state.db, **{**defaults, **given})
    except TimeoutError:
        late = DatabaseUnavailable(f"PostgreSQL did not answer within {watch.DEADLINE:g} s")
        return _refusal(QueueUnavailable(late))
    except DatabaseError as error:
        return _refusal(error)
    return JSONResponse(queued.response(), status_code=queued.status_code)


async def _body(request: Request) -> Any:
    """The JSON of a program. A page of another site can neither send that type nor hide where it comes from."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "send JSON: Content-Type: application/json")
    if not is_own(request, request.app.state.settings.base_url):
        raise HTTPException(403, "a page of another site cannot ask for this")
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > _MOST_BYTES:
            raise HTTPException(413, f"send at most {_MOST_BYTES} bytes")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(found, dict):
        raise HTTPException(400, "the body is not a JSON object")
    return found


def _read(body: dict[str, Any], shape: Mapping[str, tuple[str, Read, bool]], required: set[str]) -> dict[str, Any]:
    """The arguments that the body gives; null is not given. Raises HTTPException with every problem."""
    problems = [f"{name} is not expected: the fields are {', '.join(shape)}" for name in body if name not in shape]
    given: dict[str, Any] = {}
    for name, (argument, read, always) in shape.items():
        if body.get(name) is None:
            if always or name in required:
                problems.append(f"{name} is missing")
            continue
        try:
            given[argument] = read(body[name])
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise HTTPException(400, "; ".join(problems))
    return given


def is_for_programs(request: Request) -> bool:
    """Whether an address is one of these, or would be: what is wrong there is told as JSON."""
    return request.url.path == "/api" or request.url.path.startswith("/api/")


def refused(request: Request, error: HTTPException) -> JSONResponse:
    """404, 405 and their like."""
    words = error.detail
    if error.status_code == 404:
        words = f"there is nothing at {request.url.path}"
    elif error.status_code == 405:
        words = f"{request.method} is not taken here, {(error.headers or {}).get('Allow', 'another method')} is"
    return _sorry(error.status_code, words, headers=dict(error.headers or {}))


def failed(headers: dict[str, str]) -> JSONResponse:
    """An unforeseen error, which the log tells of."""
    return _sorry(500, "something went wrong here: the log of the web server says what", headers=headers)


def _refusal(error: DatabaseError) -> JSONResponse:
    code = error.status_code
    return _sorry(
        code,
        error.message,
        detail=error.detail if code < 500 else None,
        hint=error.hint,
        sqlstate=error.sqlstate,
        headers={"retry-after": "30"} if code == 503 else None,
    )


def _sorry(code: int, error: str, *, headers: dict[str, str] | None = None, **more: str | None) -> JSONResponse:
    said = {name: value for name, value in more.items() if value is not None}
    return JSONResponse(
        {"success": False, "statusCode": code, "error": error, **said}, status_code=code, headers=headers
    )
