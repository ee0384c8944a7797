"""The ASGI application: pages, /health, /ready."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from procjobs import __version__, watch
from procjobs.db import Database
from procjobs.letters import Brand
from procjobs.mailcatcher import Mailbox
from procjobs.settings import Settings
from procjobs.web import invitations, pages, previews, public, registration, requests, unsubscribe
from procjobs.web.guard import Guard, SecurityHeaders

__all__ = ["create_app"]

_HERE = Path(__file__).parent

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(settings: Settings, dsn: str, *, mailbox: str | Path | None = None) -> Starlette:
    """The web application over one database.

    mailbox: the maildir of a mail catcher to show; without it there is no page for mail.
    It starts, and answers /health with 503, also while the database cannot be reached.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.db = Database(dsn, timeout=watch.DEADLINE)
        await app.state.db.open(wait=False)
        try:
            yield
        finally:
            await app.state.db.close()

    app = Starlette(
        routes=[
            Route("/", _guarded(pages.status), name="status"),
            Route("/mail", _guarded(pages.mails), name="mails"),
            Route("/mail/preview", _guarded(previews.previews), name="previews"),
            Route("/mail/preview/{template}", _guarded(previews.preview), name="preview"),
            Route("/mail/preview/{template}/html", _guarded(previews.preview_html), name="preview_html"),
            Route("/mail/{mail_id}", _guarded(pages.mail), name="mail"),
            Route("/mail/{mail_id}/html", _guarded(pages.mail_html), name="mail_html"),
            Route("/unsubscribe/{token}", unsubscribe.page, methods=["GET", "POST"], name="unsubscribe"),
            Route("/unsubscribe/{token}/undo", unsubscribe.undo, methods=["GET", "POST"], name="resubscribe"),
            Route("/brand.css", public.brand_css, name="brand_css"),
            Route("/invite/{token}", invitations.page, methods=["GET", "POST"], name="invite"),
            Route("/register", _guarded(registration.page), methods=["GET", "POST"], name="register"),
            Route("/api/notifications", requests.notifications, methods=["POST"], name="notifications"),
            Route("/api/invitations", requests.invitations, methods=["POST"], name="invitations"),
            Route("/health", health, name="health"),
            Route("/healthz", health),
            Route("/ready", ready, name="ready"),
            Mount("/static", StaticFiles(directory=_HERE / "static"), name="static"),
        ],
        middleware=[Middleware(SecurityHeaders)],
        exception_handlers={HTTPException: public.refused, Exception: public.failed},
        lifespan=lifespan,
    )
    app.state.brand = Brand.of(settings)
    app.state.guard = Guard(settings.host, settings.tokens, user_token=settings.user_token)
    app.state.mailbox = Mailbox(Path(mailbox)) if mailbox else None
    app.state.version = __version__
    app.state.settings = settings
    return app


def _guarded(page: Endpoint) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        if not request.app.state.guard.opens(request):
            raise HTTPException(
                401,
                "This page is open on this machine only. From elsewhere send a token: Authorization: Bearer ...",
                headers={"www-authenticate": "Bearer"},
            )
        return await page(request)

    return endpoint


async def health(request: Request) -> Response:
    """200 while jobs can be enqueued, else 503; the body says what is wrong."""
    found = await watch.health(request.app.state.db)
    body: dict[str, Any] = {**asdict(found), "version": request.app.state.version}
    return JSONResponse(body, status_code=503 if found.status == "down" else 200)


async def ready(request: Request) -> Response:
    """200 when this process can serve requests, else 503."""
    found = await watch.health(request.app.state.db)
    return JSONResponse({"ready": found.ready}, status_code=200 if found.ready else 503)
