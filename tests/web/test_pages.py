"""The pages: what they show, what they refuse, and that nothing a stranger wrote runs in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from email.message import EmailMessage
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from procjobs.mailcatcher import Mailbox
from procjobs.settings import Settings
from procjobs.web.app import create_app
from procjobs.web.guard import CONTENT_SECURITY_POLICY, MAIL_POLICY

CANARY = "<script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}"
TOKEN = "t" * 43
LOCAL = "http://127.0.0.1:8080"


@pytest.fixture
def box(tmp_path: Path) -> Mailbox:
    return Mailbox(tmp_path / "mail")


@pytest.fixture
def client(dsn: str, box: Mailbox) -> Iterator[TestClient]:
    app = create_app(Settings(admin_token=TOKEN), dsn, mailbox=box.path)
    with TestClient(app, base_url=LOCAL, headers={"accept": "text/html"}) as opened:
        yield opened


def letter(subject: str = "Hello", html: str | None = "<p>Rich</p>", text: str = "Plain") -> bytes:
    message = EmailMessage()
    message["From"] = "ada@example.org"
    message["To"] = "bob@example.org"
    message["Subject"] = subject
    message.set_content(text)
    if html is not None:
        message.add_alternative(html, subtype="html")
    return message.as_bytes()


class Elements(HTMLParser):
    """Every element of a page with its attributes, and what stands outside of tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def register(sql: Any, state: str = "alive") -> None:
    sql(
        "select procjobs.register_worker('w1', 'host', 1, '0', null, '{a}', 10,"
        " make_interval(secs => 10), make_interval(secs => 30))"
    )


def test_the_status_page_shows_workers_queues_jobs_and_mail(client: TestClient, sql: Any, box: Mailbox) -> None:
    register(sql)
    sql('select procjobs.register_tasks(\'[{"name": "greet", "queue": "hellos"}]\', \'test\')')
    sql("select procjobs.defer('greet')")
    sql("select procjobs.pause_queue('hellos', 'lunch')")
    box.add(letter(subject="Good morning"))

    page = client.get("/")
    assert page.status_code == 200
    for words in ("Everything is running", "w1", "hellos", "paused", "lunch", "greet", "waiting", "Good morning"):
        assert words in page.text, words


def test_without_a_worker_the_status_page_says_so(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200 and "no worker is alive" in page.text


def test_a_mail_is_listed_opened_and_its_html_is_framed(client: TestClient, box: Mailbox) -> None:
    mail_id = box.add(letter(subject="Good morning", text="The words"))

    assert f"/mail/{mail_id}" in client.get("/mail").text
    page = client.get(f"/mail/{mail_id}")
    assert "Good morning" in page.text and "The words" in page.text
    (frame,) = Elements(page.text).all("iframe")
    assert frame["sandbox"] in (None, "") and frame["src"] == f"/mail/{mail_id}/html"
    assert client.get(f"/mail/{mail_id}/html").text.strip() == "<p>Rich</p>"


def test_a_mail_without_html_has_no_frame(client: TestClient, box: Mailbox) -> None:
    mail_id = box.add(letter(html=None))
    assert not Elements(client.get(f"/mail/{mail_id}").text).all("iframe")
    assert client.get(f"/mail/{mail_id}/html").status_code == 404


def test_mails_go_page_by_page(client: TestClient, box: Mailbox) -> None:
    for number in range(51):
        box.add(letter(subject=f"mail {number} of many"))
    first, second = client.get("/mail").text, client.get("/mail?page=2").text

    assert len(re.findall(r"mail \d+ of many", first)) == 50 and "Older" in first and "Newer" not in first
    assert re.findall(r"mail \d+ of many", second) == ["mail 0 of many"] and "Newer" in second


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/nowhere", 404),
        ("/mail/nothing", 404),
        ("/mail/..%2f..%2fup.json", 404),
        ("/mail?page=0", 400),
        ("/mail?page=x", 400),
        ("/mail?page=99999999999999", 400),
        ("/static/../app.py", 404),
    ],
)
def test_what_is_not_there_is_refused_as_a_page(client: TestClient, path: str, code: int) -> None:
    answer = client.get(path)
    assert answer.status_code == code
    assert "Traceback" not in answer.text


def test_programs_are_refused_in_a_line_of_text(client: TestClient) -> None:
    answer = client.get("/mail/nothing", headers={"accept": "*/*"})
    assert answer.headers["content-type"].startswith("text/plain") and answer.text == "There is no such mail.\n"


def test_only_looking_is_possible(client: TestClient) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert client.request(method, "/").status_code == 405


def test_what_strangers_write_is_shown_and_never_run(client: TestClient, sql: Any, box: Mailbox) -> None:
    sql("select procjobs.register_tasks(jsonb_build_array(jsonb_build_object('name', %s::text)), 'test')", CANARY)
    sql("select procjobs.defer(%s, queue => %s)", CANARY, CANARY)
    sql("select procjobs.pause_queue(%s, %s)", CANARY, CANARY)
    mail_id = box.add(letter(subject=CANARY, text=CANARY))

    for path in ("/", "/mail", f"/mail/{mail_id}"):
        page = Elements(client.get(path).text)
        assert CANARY in page.words, path
        assert [script.get("src") for script in page.all("script")] == ["/static/refresh.js"], path
        assert {image.get("src") for image in page.all("img")} == {"/static/icon.svg"}, path


def test_pages_load_nothing_from_elsewhere_and_have_no_inline_script_or_style(client: TestClient, box: Mailbox) -> None:
    mail_id = box.add(letter())
    for path in ("/", "/mail", f"/mail/{mail_id}", "/nowhere"):
        answer = client.get(path)
        page = Elements(answer.text)
        for _, attributes in page.found:
            for name, value in attributes.items():
                assert not name.startswith("on") and name != "style", (path, name)
                if name in {"src", "href"}:
                    assert value is not None and value.startswith(("/", "#")), (path, value)
        assert all(script.get("src") for script in page.all("script")) and not page.all("style")
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    for asset in ("procjobs.css", "refresh.js", "icon.svg"):
        text = client.get(f"/static/{asset}").text.replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text and "@import" not in text, asset


def test_a_mails_own_html_may_do_nothing(client: TestClient, box: Mailbox) -> None:
    mail_id = box.add(letter(html=CANARY))
    answer = client.get(f"/mail/{mail_id}/html")
    assert answer.headers["content-security-policy"] == MAIL_POLICY
    assert MAIL_POLICY.startswith("sandbox; default-src 'none'") and "script" not in MAIL_POLICY


@pytest.mark.parametrize("path", ["/", "/mail", "/health", "/static/procjobs.css", "/nowhere"])
def test_every_answer_has_the_protective_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers


def test_an_unforeseen_error_is_a_page_without_its_traceback(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("procjobs.watch.overview", broken)
    app = create_app(Settings(), dsn)
    with TestClient(app, base_url=LOCAL, headers={"accept": "text/html"}, raise_server_exceptions=False) as client:
        answer = client.get("/")
    assert answer.status_code == 500 and "secret detail" not in answer.text
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY


def test_pages_can_be_used_without_eyes_or_mouse(client: TestClient, box: Mailbox) -> None:
    mail_id = box.add(letter())
    for path in ("/", "/mail", f"/mail/{mail_id}", "/nowhere"):
        page = Elements(client.get(path).text)
        (html,) = page.all("html")
        assert html["lang"] == "en"
        assert len(page.all("h1")) == 1 and len(page.all("main")) == 1 and page.all("title")
        assert page.all("a")[0]["href"] == "#content"
        assert all("alt" in image for image in page.all("img"))
        assert all(cell.get("scope") for cell in page.all("th"))
        ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
        assert len(ids) == len(set(ids))
        referred = {attributes["aria-labelledby"] for _, attributes in page.found if "aria-labelledby" in attributes}
        assert referred <= set(ids)


def test_the_colours_are_readable_in_light_and_in_dark() -> None:
    """WCAG 2.2, 1.4.3: text has a contrast of at least 4.5 to what it stands on."""
    css = (Path(create_app.__code__.co_filename).parent / "static" / "procjobs.css").read_text()
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in css.split("@media", 1))
    for theme in (light, {**light, **dark}):
        pairs = [(ink, ground) for ink in ("ink", "soft", "link") for ground in ("paper", "card")]
        pairs += [(name, f"{name}-back") for name in ("good", "warn", "bad", "busy")]
        for ink, ground in pairs:
            assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, as WCAG 2.2 defines it."""

    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
