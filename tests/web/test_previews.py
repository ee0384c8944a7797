"""Previews of mails in the pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from procjobs.letters import templates
from procjobs.settings import Settings
from procjobs.web.app import create_app
from procjobs.web.guard import MAIL_POLICY
from tests.web.test_pages import Elements


@pytest.fixture
def client() -> Iterator[TestClient]:
    """No database is needed."""
    app = create_app(Settings(brand_name="Harbour Lane"), "postgresql://nobody@127.0.0.1:1/none")
    with TestClient(app, base_url="http://127.0.0.1:8080") as opened:
        yield opened


def test_every_template_is_listed_and_can_be_seen(client: TestClient) -> None:
    page = client.get("/mail/preview")
    links = {str(link["href"]) for link in Elements(page.text).all("a")}
    for name in templates():
        assert f"/mail/preview/{name}" in links
        shown = client.get(f"/mail/preview/{name}?theme=dark&width=phone")
        assert shown.status_code == 200 and "Harbour Lane" in shown.text
        (frame,) = Elements(shown.text).all("iframe")
        assert frame["sandbox"] in (None, "") and frame["src"] == f"/mail/preview/{name}/html?theme=dark"
        html = client.get(str(frame["src"]))
        assert html.headers["content-security-policy"] == MAIL_POLICY
        assert "@media all" in html.text and "@media all" not in client.get(f"/mail/preview/{name}/html").text


@pytest.mark.parametrize(
    ("path", "code"),
    [("nonsense", 404), ("base", 404), ("..%2Fbase", 404), ("tips?theme=pink", 400), ("tips?width=%00", 400)],
)
def test_what_there_is_not_is_refused(client: TestClient, path: str, code: int) -> None:
    assert client.get(f"/mail/preview/{path}").status_code == code


def test_previews_are_guarded_like_the_other_pages(client: TestClient) -> None:
    for path in ("/mail/preview", "/mail/preview/tips", "/mail/preview/tips/html"):
        assert client.get(path, headers={"host": "evil.example"}).status_code == 401
