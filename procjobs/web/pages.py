"""The pages: status, mails, one mail, and what is shown when something is refused or fails."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from procjobs import watch
from procjobs.mailcatcher import Mail, Mailbox
from procjobs.web.guard import HEADERS, MAIL_POLICY

__all__ = ["failed", "mail", "mail_html", "mails", "refused", "render", "status"]

_PAGE = 50
_TITLES = {400: "That cannot be asked for", 401: "Not open from here", 404: "Not found", 405: "Not that way"}


def ago(value: datetime | None) -> str:
    """How long ago, or how far ahead, a time is, in one unit: `just now`, `3 min ago`, `in 2 h`."""
    if value is None:
        return ""
    seconds = (datetime.now(UTC) - value).total_seconds()
    if abs(seconds) < 3:
        return "just now"
    words = span(timedelta(seconds=abs(seconds)))
    return f"{words} ago" if seconds > 0 else f"in {words}"


def span(value: timedelta | None) -> str:
    """A length of time in one unit: `4 s`, `12 min`, `3 h`, `2 d`."""
    if value is None:
        return ""
    seconds = value.total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters.update(ago=ago, span=span)


def render(request: Request, template: str, *, code: int = 200, **values: Any) -> Response:
    """A page from one of the templates."""
    state = request.app.state
    page = _templates.get_template(template).render(
        url_for=lambda name, **path: request.url_for(name, **path).path,
        version=state.version,
        has_mail=state.mailbox is not None,
        here=request.url.path,
        **values,
    )
    return HTMLResponse(page, status_code=code)


async def status(request: Request) -> Response:
    """The first page: does it work, what waits, who works, what happened last."""
    box: Mailbox | None = request.app.state.mailbox
    overview = await watch.overview(request.app.state.db)
    return render(
        request,
        "status.html",
        code=503 if overview.health.status == "down" else 200,
        overview=overview,
        mails=box.list(5) if box else [],
    )


async def mails(request: Request) -> Response:
    """The mails that the catcher kept, newest first, fifty a page."""
    box = _mailbox(request)
    number = _number(request.query_params.get("page", "1"))
    found = box.list(_PAGE + 1, (number - 1) * _PAGE)
    return render(request, "mails.html", mails=found[:_PAGE], number=number, more=len(found) > _PAGE, total=box.count())


async def mail(request: Request) -> Response:
    """One mail: its headers, text, HTML in a sandboxed frame."""
    return render(request, "mail.html", mail=_mail(request))


async def mail_html(request: Request) -> Response:
    """The HTML of a mail as a document of its own, which may do nothing but be looked at."""
    found = _mail(request)
    if found.html is None:
        raise HTTPException(404, "This mail has no HTML part.")
    return HTMLResponse(found.html, headers={"content-security-policy": MAIL_POLICY})


def _mailbox(request: Request) -> Mailbox:
    box = request.app.state.mailbox
    if not isinstance(box, Mailbox):
        raise HTTPException(404, "There is no mail catcher here; `procjobs up` starts one.")
    return box


def _mail(request: Request) -> Mail:
    found = _mailbox(request).read(request.path_params["mail_id"])
    if found is None:
        raise HTTPException(404, "There is no such mail.")
    return found


def _number(given: str) -> int:
    if not (given.isascii() and given.isdigit() and 0 < len(given) < 7 and int(given) > 0):
        raise HTTPException(400, "The page must be a number from 1.")
    return int(given)


async def refused(request: Request, error: Exception) -> Response:
    """401, 404 and their like, as a page for browsers and as a line of text for programs."""
    assert isinstance(error, HTTPException)
    return _sorry(request, error.status_code, error.detail, error.headers)


async def failed(request: Request, error: Exception) -> Response:
    """An unforeseen error: logged with its traceback, shown without."""
    # Starlette calls this outside of all middleware.
    return _sorry(request, 500, "Something went wrong here. The log of this process says what.", HEADERS)


def _sorry(request: Request, code: int, words: str, headers: Any = None) -> Response:
    if "text/html" in request.headers.get("accept", ""):
        answer = render(request, "sorry.html", code=code, title=_TITLES.get(code, "Sorry"), words=words)
    else:
        answer = PlainTextResponse(words + "\n", status_code=code)
    answer.headers.update(headers or {})
    return answer
