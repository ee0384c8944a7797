"""Letters: the words and the look of what is sent, from the templates in templates/mail.

Each letter is a pair of templates, `name`.html.j2 and `name`.txt.j2, over the frame `base`; the text has a block
`subject` beside the block `letter`, and may have one `preview`: the line that mail programs show beside the subject.
What a letter is filled with is shown by `name`.sample.json, which previews are made of.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import jinja2

from procjobs.errors import SettingsError

if TYPE_CHECKING:
    from procjobs.settings import Settings

__all__ = [
    "CONTROL",
    "Brand",
    "Letter",
    "local_time",
    "one_line",
    "paragraphs",
    "render",
    "sample",
    "templates",
    "web_url",
]

#: What no header and no heading may hold: line breaks of every kind, and the other control characters.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Brand:
    """Whose mail it is: name, colour of buttons (#rrggbb), logo and home page, where there are any."""

    name: str = "procjobs"
    color: str = "#2f5fd0"
    logo_url: str | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", self.color):
            raise SettingsError(f"brand_color is {self.color!r}: write a colour as #rrggbb")

    @property
    def ink(self) -> str:
        """White or near-black, whichever is easier to read on the colour (WCAG 2.1, relative luminance)."""
        parts = [int(self.color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return "#ffffff" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.3 else "#1b2330"

    @classmethod
    def of(cls, settings: Settings) -> Brand:
        """The brand that the settings name."""
        return cls(settings.brand_name, settings.brand_color, settings.brand_logo_url, settings.base_url)


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("procjobs", "templates/mail"),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "line": one_line,
        "paragraphs": paragraphs,
        "web_url": web_url,
        "local_time": lambda at, zone: local_time(datetime.fromisoformat(at) if isinstance(at, str) else at, zone),
    }
    return environment


def templates() -> list[str]:
    """The names of the letters that there are."""
    names = (name.partition(".")[0] for name in _templates().list_templates() if name.endswith(".txt.j2"))
    return sorted(set(names) - {"base"})


def sample(name: str) -> dict[str, Any]:
    """What the letter is filled with in previews: a content as `procjobs.enqueue_letter` takes it."""
    found = resources.files("procjobs").joinpath(f"templates/mail/{name}.sample.json").read_text("utf-8")
    content: dict[str, Any] = json.loads(found)
    return content


@dataclass(frozen=True, slots=True)
class Letter:
    """A letter as it is sent: subject on one line, and the same words twice."""

    subject: str
    text: str
    html: str


def render(name: str, /, **values: Any) -> Letter:
    """The letter `name`, filled with the values. A value that a template misses raises jinja2.UndefinedError."""
    text = _templates().get_template(f"{name}.txt.j2")
    subject = _line(text, "subject", values)[:255]
    values = {"preview": _line(text, "preview", values)[:140], **values, "subject": subject}
    html = _templates().get_template(f"{name}.html.j2").render(values)
    return Letter(subject, re.sub(r"\n{3,}", "\n\n", text.render(values)).strip() + "\n", html)


def _line(template: jinja2.Template, block: str, values: dict[str, Any]) -> str:
    """A block of the template on one line; empty where there is none."""
    if block not in template.blocks:
        return ""
    return one_line("".join(template.blocks[block](template.new_context(values))))


def one_line(text: str) -> str:
    """`text` on one line: white space and control characters, however many, become one space."""
    return " ".join(CONTROL.sub(" ", text).split())


def paragraphs(text: str) -> list[list[str]]:
    """Paragraphs, which blank lines part, as lists of lines without control characters."""
    found: list[list[str]] = [[]]
    for line in re.split(r"\r\n|[\r\n\u2028\u2029]", text):
        if clean := CONTROL.sub(" ", line).rstrip():
            found[-1].append(clean)
        elif found[-1]:
            found.append([])
    return [lines for lines in found if lines]


def web_url(url: str | None) -> str | None:
    """`url` if it is a plain web address and nothing that a mail program would run; else None."""
    return url if url and re.fullmatch(r"(?i)https?://[^\s\"'<>]+", url) else None


def local_time(at: datetime, zone: str) -> str:
    """`at` as a clock in that IANA zone shows it; in UTC where the zone is not known here."""
    try:
        local, name = at.astimezone(ZoneInfo(zone)), zone.replace("_", " ")
    except (KeyError, ValueError, OSError):
        local, name = at.astimezone(UTC), "UTC"
    return f"{local:%a} {local.day} {local:%b %Y, %H:%M} ({name})"
