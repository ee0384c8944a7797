"""Letters: the words and the look of what is sent, from the templates in templates/mail.

Each letter is a pair of templates, `name`.html.j2 and `name`.txt.j2, over the frame `base`; the text has a block
`subject` beside the block `letter`, and may have one `preview`: the line that mail programs show beside the subject.
What a letter is filled with is shown by `name`.sample.json, which previews are made of.

The style element of the frame is written into the elements, since mail programs drop it; what is under @media stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import jinja2

from procjobs.errors import SettingsError

if TYPE_CHECKING:
    import css_inline

    from procjobs.settings import Settings

__all__ = [
    "CONTROL",
    "Brand",
    "Letter",
    "day",
    "figure",
    "in_theme",
    "local_time",
    "money",
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
        return "#ffffff" if _luminance(_parts(self.color)) < 0.3 else "#1b2330"

    @property
    def link(self) -> str:
        """The colour, darkened until it can be read on white (contrast 4.5:1)."""
        return _towards(self.color, 0.0, lambda luminance: luminance <= 0.18)

    @property
    def dark_link(self) -> str:
        """The colour, lightened until it can be read on the dark theme's sheet."""
        return _towards(self.color, 1.0, lambda luminance: luminance >= 0.36)

    @classmethod
    def of(cls, settings: Settings) -> Brand:
        """The brand that the settings name."""
        return cls(settings.brand_name, settings.brand_color, settings.brand_logo_url, settings.base_url)


def _parts(color: str) -> list[float]:
    return [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _luminance(parts: list[float]) -> float:
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _towards(color: str, end: float, enough: Callable[[float], bool]) -> str:
    """The colour, mixed with black (end 0) or white (end 1) in steps of a twentieth until it is enough."""
    parts = _parts(color)
    for step in range(21):
        mixed = [part + (end - part) * step / 20 for part in parts]
        if enough(_luminance(mixed)):
            break
    return "#" + "".join(f"{round(part * 255):02x}" for part in mixed)


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
        "money": money,
        "figure": figure,
        "day": day,
        "local_time": lambda at, zone: local_time(datetime.fromisoformat(at) if isinstance(at, str) else at, zone),
    }
    return environment


@cache
def _inliner() -> css_inline.CSSInliner:
    try:
        import css_inline
    except ImportError as error:
        raise SettingsError("mail needs css-inline: pip install 'procjobs[email]'") from error
    return css_inline.CSSInliner(load_remote_stylesheets=False, keep_at_rules=True)


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
    values = {"preview": _line(text, "preview", values)[:140], "unsubscribe_url": None, **values, "subject": subject}
    html = _inliner().inline(_templates().get_template(f"{name}.html.j2").render(values))
    return Letter(subject, re.sub(r"\n{3,}", "\n\n", text.render(values)).strip() + "\n", html)


def in_theme(html: str, theme: str) -> str:
    """A letter's HTML as programs with that theme show it, `light` or `dark`, whatever this one has."""
    return re.sub(r"\(prefers-color-scheme:\s*dark\)", "all" if theme == "dark" else "not all", html)


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


#: Currencies without hundredths, by their decimals (ISO 4217).
_DECIMALS = dict.fromkeys(
    ("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF", "XPF"), 0
)
_DECIMALS |= dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3)


def money(amount: str | float | Decimal, currency: str) -> str:
    """An amount with the decimals of its currency: `4,200.00 EUR`. Raises ValueError for what is no number."""
    try:
        number = Decimal(str(amount))
        shown = f"{number:,.{_DECIMALS.get(currency.upper(), 2)}f}"
    except ArithmeticError as error:
        raise ValueError(f"{amount!r} is not an amount") from error
    return f"{shown}\u00a0{one_line(currency)}"


def figure(value: object) -> str:
    """A number with separators, anything else as one line."""
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return f"{value:,}"
    return one_line(str(value))


def day(value: str | date) -> str:
    """A date as `1 Dec 2026`; what is none stays as it is, on one line."""
    try:
        found = date.fromisoformat(value[:10]) if isinstance(value, str) else value
    except ValueError:
        return one_line(str(value))
    return f"{found.day} {found:%b %Y}"
