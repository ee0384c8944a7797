"""Previews: what mails look like, made of the samples that come with the templates."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from procjobs.letters import Letter, in_theme, templates
from procjobs.packs.notifications import preview as preview_of
from procjobs.web.guard import MAIL_POLICY
from procjobs.web.pages import render

__all__ = ["preview", "preview_html", "previews"]

_THEMES = ("light", "dark")
_WIDTHS = ("desktop", "phone")


async def previews(request: Request) -> Response:
    """The templates that there are, with the subjects of their samples."""
    brand = request.app.state.brand
    return render(request, "previews.html", letters=[(name, preview_of(name, brand).subject) for name in templates()])


async def preview(request: Request) -> Response:
    """One template: HTML in a sandboxed frame, light or dark, wide or narrow, and the text."""
    return render(
        request,
        "preview.html",
        name=request.path_params["template"],
        letter=_letter(request),
        theme=_choice(request, "theme", _THEMES),
        width=_choice(request, "width", _WIDTHS),
        themes=_THEMES,
        widths=_WIDTHS,
    )


async def preview_html(request: Request) -> Response:
    """The HTML as a document of its own, in the theme that is asked for."""
    html = in_theme(_letter(request).html, _choice(request, "theme", _THEMES))
    return HTMLResponse(html, headers={"content-security-policy": MAIL_POLICY})


def _letter(request: Request) -> Letter:
    name = request.path_params["template"]
    if name not in templates():
        raise HTTPException(404, "There is no such template.")
    return preview_of(name, request.app.state.brand)


def _choice(request: Request, name: str, choices: tuple[str, ...]) -> str:
    given = request.query_params.get(name, choices[0])
    if given not in choices:
        raise HTTPException(400, f"The {name} is one of {', '.join(choices)}.")
    return given
