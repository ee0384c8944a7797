"""Letters say everything twice, as text and as HTML, and take no value for markup."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from importlib import resources
from typing import Any

import jinja2
import pytest
from psycopg.types.json import Jsonb

from procjobs.errors import SettingsError
from procjobs.letters import (
    Brand,
    day,
    figure,
    in_theme,
    local_time,
    money,
    one_line,
    paragraphs,
    render,
    sample,
    templates,
    web_url,
)
from procjobs.mail import Mail, compose, parse_sender
from procjobs.packs.notifications import Delivery, letter, preview
from procjobs.settings import Settings

AT = datetime(2026, 11, 24, 8, 31, tzinfo=UTC)
ABOUT = {
    "author_name": "Maya Lindgren",
    "content_type": "milestones",
    "title": "First steps!",
    "body": "Four steps from the sofa to the bookshelf.",
    "url": "https://harbourlane.example/updates/first-steps",
    "image_url": "https://harbourlane.example/steps.jpg",
    "created_at": "2026-11-24T05:31:00+00:00",
}


def delivery(**changes: Any) -> Delivery:
    values: dict[str, Any] = {
        "status": "processing",
        "reason": None,
        "at": AT,
        "delivery_id": 1,
        "attempt": 1,
        "message_id": "<6f1c@harbourlane.example>",
        "delivery_method": "email",
        "notification_type": "immediate",
        "template": "notification",
        "urgency": "normal",
        "content": {"subject": "Hello", "body": "First paragraph,\nsecond line.\n\nSecond paragraph."},
        "recipient_name": "Ingrid",
        "address": "ingrid@family.example",
        "timezone": "Asia/Kolkata",
        "group_name": "The Lindgrens",
        "organization_name": "Harbour Lane",
        "organization_logo_url": None,
        "about": None,
    }
    return Delivery(**{**values, **changes})


def both(brand: Brand | None = None, **changes: Any) -> tuple[str, str]:
    written = render("notification", **letter(delivery(**changes), brand or Brand()))
    return written.text, written.html


class Page(HTMLParser):
    """The visible text, the links, pictures and tags of a page; fails where tags do not nest."""

    VOID = frozenset({"meta", "br", "img", "hr", "link"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        self.links += [given["href"] or ""] if tag == "a" else []
        self.pictures += [given["src"] or ""] if tag == "img" else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(filter(None, self.texts))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {},
            ["Harbour Lane", "The Lindgrens", "Hello Ingrid,", "First paragraph,", "second line.", "Second paragraph."],
        ),
        (
            {"content": {}, "about": ABOUT},
            ["Maya Lindgren shared a milestone", "First steps!", "Four steps from the sofa"],
        ),
        ({"content": {}, "about": ABOUT}, ["See the milestone", "https://harbourlane.example/updates/first-steps"]),
        ({"about": ABOUT}, ["Second paragraph.", "First steps!", "Maya Lindgren"]),
        ({"recipient_name": None}, ["Hello,"]),
        ({"group_name": None}, ["This message was sent to ingrid@family.example."]),
        ({}, ["You receive this because you are part of The Lindgrens.", "Tue 24 Nov 2026, 14:01 (Asia/Kolkata)"]),
        ({"organization_name": None}, ["procjobs"]),
    ],
)
def test_text_and_html_say_the_same(changes: dict[str, Any], words: list[str]) -> None:
    text, html = both(**changes)
    seen = Page(html).text
    assert [word for word in words if word not in text] == []
    assert [word for word in words if word not in seen] == []


@pytest.mark.parametrize("changes", [{}, {"content": {}, "about": ABOUT}, {"about": ABOUT}, {"group_name": None}])
def test_the_html_is_a_whole_page_that_fetches_nothing_but_pictures(changes: dict[str, Any]) -> None:
    page = Page(both(**changes)[1])
    assert {"html", "head", "body", "h1", "title"} <= page.tags
    assert not page.tags & {"script", "link", "iframe", "form", "object", "svg"}
    assert all(link.startswith("https://") for link in page.links)
    assert page.pictures == ([ABOUT["image_url"]] if changes.get("about") else [])


FIELDS = ["subject", "body", "preview", "action_label"]
CANARY = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{7*7}}{% if %}"


@pytest.mark.parametrize("field", [*FIELDS, "recipient_name", "group_name", "organization_name", "address", "timezone"])
def test_a_value_is_never_markup_nor_template(field: str) -> None:
    content = {"subject": "x", "body": "x", "action_label": "x", "action_url": "https://a.example/"}
    changes: dict[str, Any] = {"content": {**content, field: CANARY}} if field in FIELDS else {field: CANARY}
    if field == "address":
        changes["group_name"] = None
    text, html = both(**changes)
    page = Page(html)
    assert not page.tags & {"script", "img"}
    assert "49" not in page.text
    if field not in ("preview", "timezone"):
        assert CANARY in text


@pytest.mark.parametrize("field", ["author_name", "title", "body", "content_type"])
def test_an_update_of_the_application_is_never_markup_either(field: str) -> None:
    _, html = both(content={}, about={**ABOUT, "image_url": None, field: CANARY})
    assert not Page(html).tags & {"script", "img"}


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "data:text/html,x", 'https://a.example/"onload="x', "//a.example", ""]
)
def test_a_link_that_is_no_web_address_is_left_out(url: str) -> None:
    _, html = both(content={"subject": "x", "body": "x"}, about={**ABOUT, "url": url, "image_url": url})
    page = Page(html)
    assert (page.links, page.pictures) == ([], [])


def test_an_address_in_the_words_becomes_a_link() -> None:
    _, html = both(content={"subject": "x", "body": "See https://a.example/b?c=1&d=2."})
    assert Page(html).links == ["https://a.example/b?c=1&d=2"]


def test_the_subject_is_one_line_of_bearable_length_whatever_the_update_is_called() -> None:
    values = letter(delivery(content={}, about={**ABOUT, "title": "a\r\nBcc: x@y.example\n" + "long " * 100}), Brand())
    assert values["subject"].startswith("Maya Lindgren: a Bcc: x@y.example long")
    assert len(values["subject"]) == 255
    assert "\n" not in values["subject"]


def test_a_value_that_a_template_misses_is_an_error() -> None:
    values = letter(delivery(), Brand())
    del values["greeting"]
    with pytest.raises(jinja2.UndefinedError, match="greeting"):
        render("notification", **values)


def test_the_logo_is_the_organizations_else_the_brands() -> None:
    brand = Brand(logo_url="https://jobs.example.com/logo.png")
    assert Page(both(brand, organization_name=None)[1]).pictures == ["https://jobs.example.com/logo.png"]
    assert Page(both(brand)[1]).pictures == []
    logo = "https://harbourlane.example/logo.png"
    assert Page(both(brand, organization_logo_url=logo)[1]).pictures == [logo]


@pytest.mark.parametrize(("color", "ink"), [("#2f5fd0", "#ffffff"), ("#000000", "#ffffff"), ("#ffd400", "#1b2330")])
def test_a_button_can_be_read_on_any_colour(color: str, ink: str) -> None:
    assert Brand(color=color).ink == ink
    _, html = both(Brand(color=color), content={}, about=ABOUT)
    (press,) = re.findall(r'class="press"[^>]* style="([^"]*)"', html)
    assert f"color: {ink};" in press


@pytest.mark.parametrize("color", ["red", "#fff", "#12345g", "#123456;}body{x:y"])
def test_a_colour_that_is_none_is_a_wrong_setting(color: str) -> None:
    with pytest.raises(SettingsError, match="#rrggbb"):
        Brand(color=color)


def test_the_settings_make_the_brand() -> None:
    settings = Settings.load(environ={"PROCJOBS_BRAND_NAME": "Team", "PROCJOBS_BASE_URL": "https://jobs.example.com"})
    assert Brand.of(settings) == Brand("Team", settings.brand_color, None, "https://jobs.example.com")


# Words


@pytest.mark.parametrize(
    ("zone", "shown"),
    [
        ("Europe/Stockholm", "Tue 24 Nov 2026, 09:31 (Europe/Stockholm)"),
        ("America/New_York", "Tue 24 Nov 2026, 03:31 (America/New York)"),
        ("Australia/Lord_Howe", "Tue 24 Nov 2026, 19:31 (Australia/Lord Howe)"),
        ("Nowhere/Land", "Tue 24 Nov 2026, 08:31 (UTC)"),
        ("../../etc/passwd", "Tue 24 Nov 2026, 08:31 (UTC)"),
        ("", "Tue 24 Nov 2026, 08:31 (UTC)"),
    ],
)
def test_times_are_the_recipients_own(zone: str, shown: str) -> None:
    assert local_time(AT, zone) == shown


def test_lines_and_paragraphs() -> None:
    assert one_line(" a\t b\r\n\x00c\u2028d ") == "a b c d"
    assert paragraphs("\r\n\r\na\r\nb\n \n\nc\x07\td  \n") == [["a", "b"], ["c  d"]]
    assert paragraphs("") == []
    assert web_url("HTTPS://A.example/x") == "HTTPS://A.example/x"
    assert web_url(None) is None


def test_every_letter_can_be_seen_with_its_sample() -> None:
    frame = letter(delivery(content={}), Brand())
    for name in templates():
        content = sample(name)
        values = letter(delivery(template=name, content=content), Brand())
        written = render(name, **values)
        assert written.subject
        assert "\n" not in written.subject
        assert written.text.strip()
        assert written.html.startswith("<!DOCTYPE html>")
        assert set(values) >= set(frame) - {"about", "action", "eyebrow", "paragraphs", "preview", "subject", "title"}


def test_sql_and_the_files_name_the_same_letters(sql: Any) -> None:
    assert sorted(sql.one("select procjobs.letter_templates()")) == templates()


# Every template


def spoiled(value: Any, words: str) -> Any:
    """A content with these words in every string that is no address, number, date or word that chooses something."""
    if isinstance(value, dict):
        return {key: inner if key in CHOICES else spoiled(inner, words) for key, inner in value.items()}
    if isinstance(value, list):
        return [spoiled(inner, words) for inner in value]
    plain = isinstance(value, str) and not re.match(r"https?://|\d+(\.\d+)?$|\d{4}-\d\d-\d\d", value)
    return f"{value}{words}" if plain else value


#: What is no text for people, or a date or zone: a template may refuse it.
CHOICES = {
    "level",
    "currency",
    "timezone",
    "zone",
    "starts_at",
    "ends_at",
    "content_type",
    "kind",
    "frequency",
    "secret_path",
}
FRAME = ("recipient_name", "group_name", "organization_name", "address")


@pytest.mark.parametrize("name", templates())
def test_whatever_stands_in_a_letter_is_never_markup_nor_template(name: str) -> None:
    frame = {field: f"{field} {CANARY}" for field in FRAME}
    values = letter(delivery(template=name, content=spoiled(sample(name), f" {CANARY}"), **frame), Brand())
    written = render(name, **values)
    page = Page(written.html)
    assert not page.tags & {"script", "iframe", "object", "form"}
    assert all(picture in str(sample(name)) for picture in page.pictures)
    assert "onerror" not in " ".join(re.findall(r"<[^>]*>", written.html))
    assert "{{7*7}}" in page.text and "{{7*7}}" in written.text and "{{7*7}}" in (written.subject + page.text)
    assert not re.search(r"\b49\b(?!\.00)", page.text)
    assert all(link.startswith(("https://", "http://")) for link in page.links)


BREAKS = "\r\nBcc: x@y.example\r\n\r\n.\r\n\u2028\x00\x85end"


@pytest.mark.parametrize("name", templates())
def test_line_breaks_in_every_field_make_no_header(name: str) -> None:
    frame = {field: f"{field} {BREAKS}" for field in FRAME if field != "address"}
    values = letter(delivery(template=name, content=spoiled(sample(name), BREAKS), **frame), Brand())
    written = render(name, **values)
    mail = Mail(to="a@b.example", name=values["name"], subject=written.subject, text=written.text, html=written.html,
                message_id="<1@b.example>")  # fmt: skip
    raw = compose(mail, parse_sender("Team <team@harbourlane.example>")).as_bytes()
    head, _, _ = raw.partition(b"\r\n\r\n")
    names = {line.partition(b":")[0] for line in head.split(b"\r\n") if not line.startswith((b" ", b"\t"))}
    assert b"Bcc" not in names
    assert re.search(rb"(?<!\r)\n|\r(?!\n)|\x00", raw) is None


@pytest.mark.parametrize("name", templates())
def test_a_letter_says_the_same_twice(name: str) -> None:
    """Every text of the sample can be read in both parts."""
    values = letter(delivery(template=name, content=sample(name)), Brand())
    written = render(name, **values)
    seen = re.sub(r"\s+", " ", Page(written.html).text)
    plain = re.sub(r"\s+", " ", written.text)
    for words in texts(sample(name)):
        assert words in seen and words in plain, words


def texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [found for key, inner in value.items() if key not in CHOICES for found in texts(inner)]
    if isinstance(value, list):
        return [found for inner in value for found in texts(inner)]
    lines = [] if not isinstance(value, str) or re.match(r"https?://|\d{4}-\d\d-\d\d", value) else value.split("\n")
    return [line for line in lines if line]


@pytest.mark.parametrize("name", templates())
def test_styles_are_in_the_elements_and_only_media_queries_stay(name: str) -> None:
    html = preview(name, Brand(color="#0a7d55")).html
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert re.findall(r"@media[^{]*", style) == ["@media (max-width: 620px) ", "@media (prefers-color-scheme: dark) "]
    assert re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*\s*\}", "", style).strip() == ""
    assert 'style="' in html and "#0a7d55" in html
    assert "<link" not in html


@pytest.mark.parametrize("name", templates())
def test_every_class_of_a_letter_has_a_style(name: str) -> None:
    html = preview(name, Brand()).html
    used = {word for found in re.findall(r'class="([^"]*)"', html) for word in found.split()}
    raw = resources.files("procjobs").joinpath("templates/mail/parts.html.j2").read_text("utf-8")
    styled = set(re.findall(r"\.([a-z][\w-]*)", raw)) | {f"{kind}-{tone}" for kind in ("tone", "say") for tone in TONES}
    assert used <= styled | {"frame"}


TONES = ("info", "good", "warn", "bad")


def test_a_theme_can_be_chosen_for_a_preview() -> None:
    html = preview("tips", Brand()).html
    assert "@media all" in in_theme(html, "dark") and "@media not all" in in_theme(html, "light")
    assert "prefers-color-scheme" not in in_theme(html, "dark") + in_theme(html, "light")


@pytest.mark.parametrize("color", ["#ffd400", "#2f5fd0", "#000000", "#ffffff", "#7bd389"])
def test_links_can_be_read_on_both_themes(color: str) -> None:
    brand = Brand(color=color)
    assert contrast(brand.link, "#ffffff") >= 4.5
    assert contrast(brand.dark_link, "#272d36") >= 4.5
    assert contrast(brand.ink, color) >= 3.0 or color == brand.ink


def contrast(one: str, other: str) -> float:
    """WCAG 2.1."""

    def luminance(color: str) -> float:
        parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_amounts_numbers_and_days() -> None:
    assert money("4200", "EUR") == "4,200.00\u00a0EUR"
    assert money(1234567.5, "JPY") == "1,234,568\u00a0JPY"
    assert money("0.1", "kwd") == "0.100\u00a0kwd"
    assert money("-12.345", "USD") == "-12.34\u00a0USD"
    with pytest.raises(ValueError, match="is not an amount"):
        money("much", "EUR")
    assert (figure(12480), figure("a\nb"), figure(1.5), figure(True)) == ("12,480", "a b", "1.5", "True")
    assert (day("2026-12-01"), day("2026-12-01T10:00:00Z"), day("some\nday")) == (
        "1 Dec 2026",
        "1 Dec 2026",
        "some day",
    )


def test_the_samples_are_what_sql_would_take(sql: Any) -> None:
    for name in templates():
        problems = sql.one(
            "select procjobs.letter_problems(%s, %s, null, null, 'a@b.example', 'normal')", name, Jsonb(sample(name))
        )
        assert problems == [], name


def test_previews_show_a_way_out_where_there_is_one(sql: Any) -> None:
    ways = {name for (name,) in sql("select template from procjobs.subscription_templates()")}
    shown = {name for name in templates() if "Unsubscribe" in preview(name, Brand()).text}
    assert shown == ways & set(templates())
    assert not ways & {"invoice", "invitation", "payment_reminder", "alert", "report_ready", "welcome"}
