"""Who may see the pages: this machine, by its own name; everybody else with a token; health is for all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from procjobs.settings import Settings
from procjobs.web.app import create_app
from procjobs.web.guard import is_loopback

TOKEN = "t" * 43


@pytest.fixture
def local(dsn: str) -> Iterator[TestClient]:
    """Bound to a loopback address, as by default."""
    with TestClient(create_app(Settings(admin_token=TOKEN), dsn), base_url="http://localhost") as client:
        yield client


@pytest.fixture
def public(dsn: str) -> Iterator[TestClient]:
    """Bound to every address."""
    settings = Settings(host="0.0.0.0", user_token="u" * 43, admin_token=TOKEN)
    with TestClient(create_app(settings, dsn), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:8080", "[::1]:8080", "127.0.0.2"])
def test_this_machine_sees_the_pages(local: TestClient, host: str) -> None:
    assert local.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8080", "10.0.0.5", "localhost.evil", ""])
def test_a_name_that_was_rebound_to_this_machine_does_not(local: TestClient, host: str) -> None:
    answer = local.get("/", headers={"host": host})
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"


def test_bound_to_the_world_even_a_local_name_is_not_enough(public: TestClient) -> None:
    assert public.get("/").status_code == 401


@pytest.mark.parametrize("token", [TOKEN, "u" * 43])
def test_a_token_opens_the_pages_from_anywhere(public: TestClient, token: str) -> None:
    assert public.get("/", headers={"authorization": f"Bearer {token}"}).status_code == 200


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"])
def test_a_wrong_token_does_not(public: TestClient, given: str) -> None:
    assert public.get("/", headers=[(b"authorization", given.encode("latin-1"))]).status_code == 401


def test_without_tokens_nothing_opens_the_pages_to_the_world(dsn: str) -> None:
    with TestClient(create_app(Settings(host="0.0.0.0"), dsn)) as client:
        assert client.get("/", headers={"authorization": "Bearer "}).status_code == 401


@pytest.mark.parametrize("path", ["/health", "/healthz", "/ready"])
def test_health_is_for_everybody_and_names_nothing(public: TestClient, path: str) -> None:
    answer = public.get(path, headers={"host": "10.0.0.5"})
    assert answer.status_code == 200
    assert set(answer.json()) <= {
        "status", "workers", "waiting", "scheduled", "running", "failed", "warnings", "version", "ready"
    }  # fmt: skip


def test_without_a_mail_catcher_there_is_no_page_for_mail(local: TestClient) -> None:
    assert local.get("/mail").status_code == 404
    assert 'href="/mail"' not in local.get("/").text


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("[::1]", True), ("LOCALHOST", True), ("0.0.0.0", False), ("", False)],
)
def test_what_counts_as_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
