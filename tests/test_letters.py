"""Letters say everything twice, as text and as HTML, and take no value for markup."""

from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import jinja2
import pytest

from procjobs.errors import SettingsError
from procjobs.letters import Brand, local_time, one_line, paragraphs, render, sample, templates, web_url
from procjobs.packs.notifications import Delivery, letter
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
    assert f"color:{ink}; text-decoration:none" in html


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
        assert written.html.startswith("<!doctype html>")
        assert set(values) >= set(frame) - {"about", "action", "eyebrow", "paragraphs", "preview", "title"}


def test_sql_and_the_files_name_the_same_letters(sql: Any) -> None:
    assert sorted(sql.one("select procjobs.letter_templates()")) == templates()
