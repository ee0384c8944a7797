"""What each provider is sent, and what its answers mean: errors by their class, ids, Retry-After, idempotency keys."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from procjobs.channels import METHODS, Channels, Message, channel_state
from procjobs.channels.message import Message as _Message
from procjobs.mail import Ambiguous, Deferred, Refused, Sent
from procjobs.settings import Settings
from tests.channel_server import (
    HANG,
    META_TOKEN,
    SIGNING_KEY,
    SLACK_HOOK,
    TWILIO_TOKEN,
    ChannelServer,
    endless,
    meta_error,
    twilio_error,
)

ID = "0d3c6f2e-8a51-4b7e-9d35-6f0f6f1c2ab1"
PHONE = "+46701740633"
#: A plug-in of apprise's imports a module that Python has announced to go.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
TO = {"sms": PHONE, "whatsapp": PHONE, "slack": "C024BE91L", "apprise": "oncall"}


@pytest.fixture
async def server() -> AsyncIterator[ChannelServer]:
    async with ChannelServer() as running:
        yield running


@pytest.fixture
async def channels(server: ChannelServer) -> AsyncIterator[Channels]:
    made = Channels(Settings.load(environ=server.environ()))
    yield made
    await made.close()


async def with_settings(server: ChannelServer, method: str, message: Message, **changes: str) -> Any:
    """What becomes of a message where these settings are others."""
    channels = Channels(Settings.load(environ=server.environ(**changes)))
    try:
        return await channels.send(method, message)
    finally:
        await channels.close()


def note(server: ChannelServer, method: str = "sms", **changes: Any) -> Message:
    values = {
        "id": ID,
        "to": TO.get(method, f"{server.url}/hook"),
        "subject": "Dinner at seven",
        "body": "We are waiting & hungry.",
        "link": "https://family.example/d/7",
        "at": datetime.now(UTC),
        "type": "reminder",
        "data": {"id": ID, "created_at": "2026-11-20T10:00:00+00:00"},
    }
    return Message(**{**values, **changes})


# -- what is sent --------------------------------------------------------------------------------------------------


async def test_sms(server: ChannelServer, channels: Channels) -> None:
    outcome = await channels.send("sms", note(server))
    assert outcome == Sent(201, "queued", provider_id=f"SM{1:032x}")
    assert server.taken[0].content == {
        "To": PHONE,
        "From": "+15005550006",
        "Body": "Dinner at seven\n\nWe are waiting & hungry.\n\nhttps://family.example/d/7",
    }
    assert server.taken[0].headers["i-twilio-idempotency-token"] == ID
    assert channels.provider("sms") == "twilio"


async def test_sms_by_a_messaging_service(server: ChannelServer) -> None:
    assert isinstance(await with_settings(server, "sms", note(server), PROCJOBS_TWILIO_FROM="MG0123"), Sent)
    assert server.taken[0].content["MessagingServiceSid"] == "MG0123"


async def test_whatsapp_by_twilio_with_and_without_a_template(server: ChannelServer) -> None:
    message = note(server, "whatsapp")
    twilio = {"PROCJOBS_WHATSAPP_PROVIDER": "twilio"}
    assert isinstance(await with_settings(server, "whatsapp", message, **twilio), Sent)
    assert isinstance(
        await with_settings(server, "whatsapp", message, **twilio, PROCJOBS_WHATSAPP_TEMPLATE="HX01"), Sent
    )
    plain, template = (taken.content for taken in server.taken)
    assert (plain["To"], plain["From"]) == (f"whatsapp:{PHONE}", "whatsapp:+14155238886")
    assert template["ContentSid"] == "HX01" and "Body" not in template
    assert json.loads(template["ContentVariables"])["1"].startswith("Dinner at seven We are waiting")


async def test_whatsapp_by_meta_with_and_without_a_template(server: ChannelServer, channels: Channels) -> None:
    message = note(server, "whatsapp")
    assert await channels.send("whatsapp", message) == Sent(200, "accepted", provider_id="wamid.1")
    assert isinstance(await with_settings(server, "whatsapp", message, PROCJOBS_WHATSAPP_TEMPLATE="notice"), Sent)
    plain, template = (taken.content for taken in server.taken)
    assert (plain["to"], plain["biz_opaque_callback_data"]) == (PHONE, ID)
    assert template["template"]["name"] == "notice" and template["template"]["language"] == {"code": "en"}
    assert channels.provider("whatsapp") == "meta"


async def test_slack_by_token_names_the_message_and_escapes(server: ChannelServer, channels: Channels) -> None:
    outcome = await channels.send("slack", note(server, "slack", subject="<!channel> hi"))
    assert outcome == Sent(200, "ok", provider_id="C024BE91L/1503435956.000001")
    assert server.taken[0].content == {
        "channel": "C024BE91L",
        "text": "*&lt;!channel&gt; hi*\nWe are waiting &amp; hungry.\n\nhttps://family.example/d/7",
        "client_msg_id": ID,
        "unfurl_links": False,
    }


async def test_slack_by_an_incoming_webhook(server: ChannelServer, channels: Channels) -> None:
    assert await channels.send("slack", note(server, "slack", to="#ops")) == Sent(200, "ok")
    assert server.taken[0].path == f"/services/{SLACK_HOOK}"
    assert "authorization" not in server.taken[0].headers


async def test_a_webhook_is_signed_at_every_try_and_keeps_its_id(server: ChannelServer, channels: Channels) -> None:
    elsewhere = datetime.now(timezone(timedelta(hours=9)))
    assert await channels.send("webhook", note(server, "webhook")) == Sent(204, "HTTP 204")
    assert await channels.send("webhook", note(server, "webhook", at=elsewhere)) == Sent(204, "HTTP 204")
    first, second = server.taken
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == f"msg_{ID}"
    assert first.body == second.body
    assert first.content["type"] == "notification.reminder" and first.content["data"]["id"] == ID


async def test_a_webhook_is_signed_with_the_old_key_too(server: ChannelServer) -> None:
    newer = "whsec_" + "QUFB" * 12
    changes = {"PROCJOBS_WEBHOOK_SECRET": f"{newer} {SIGNING_KEY}"}
    assert isinstance(await with_settings(server, "webhook", note(server, "webhook"), **changes), Sent)
    assert server.taken[0].headers["webhook-signature"].count("v1,") == 2


async def test_apprise_goes_to_a_target_by_name(server: ChannelServer, channels: Channels) -> None:
    assert await channels.send("apprise", note(server, "apprise")) == Sent(None, "taken by oncall")
    assert server.taken[0].content["title"] == "Dinner at seven"
    outcome = await channels.send("apprise", note(server, "apprise", to="nobody"))
    assert isinstance(outcome, Deferred) and "apprise_targets" in outcome.reply


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ((200, "", {}), Sent(None, "taken by oncall")),
        ((503, "", {"retry-after": "30"}), Deferred(503, "oncall did not take it", retry_after=30.0)),
        ((429, "", {"retry-after": "7"}), Deferred(429, "oncall did not take it", retry_after=7.0, limited=True)),
        ((401, "", {}), Deferred(401, "oncall does not know our login: check apprise_targets")),
        ((403, "", {}), Deferred(403, "oncall does not know our login: check apprise_targets")),
        ((404, "", {}), Refused(404, "oncall did not take it")),
        (HANG, Ambiguous("oncall did not answer to what was sent")),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else value if isinstance(value, str) else "",
)
async def test_of_apprise_the_servers_answer_is_known_though_it_says_only_no(
    server: ChannelServer, answer: Any, outcome: Any
) -> None:
    server.answers = [answer]
    assert await with_settings(server, "apprise", note(server, "apprise"), **oncall(server.port)) == outcome
    assert len(server.taken) == 1


def oncall(port: int, more: str = "&rto=0.3") -> dict[str, str]:
    """The target of that name at another port; rto: seconds that apprise waits for an answer."""
    url = f"json://canary-user:canary-apprise-password@127.0.0.1:{port}/apprise?cto=1{more}"
    return {"PROCJOBS_APPRISE_TARGETS": f"oncall={url}"}


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 20"], ids=["nothing", "half a line"])
async def test_a_line_that_is_cut_after_the_request_is_ambiguous_for_apprise_too(
    server: ChannelServer, said: bytes
) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()
        writer.transport.abort()

    async with await asyncio.start_server(cut, "127.0.0.1", 0) as cutting:
        port = cutting.sockets[0].getsockname()[1]
        outcome = await with_settings(server, "apprise", note(server, "apprise"), **oncall(port))
    assert outcome == Ambiguous("oncall did not answer to what was sent")


async def test_an_answer_whose_rest_never_comes_is_one_for_apprise_too(server: ChannelServer) -> None:
    server.answers = [(500, endless(60), {})]
    outcome = await with_settings(server, "apprise", note(server, "apprise"), **oncall(server.port))
    assert outcome == Deferred(500, "oncall did not take it")


async def test_what_never_left_is_deferred_by_apprise(server: ChannelServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    outcome = await with_settings(server, "apprise", note(server, "apprise"), **oncall(port))
    assert outcome == Deferred(None, "no connection to oncall")
    unknown = {"PROCJOBS_APPRISE_TARGETS": "oncall=json://no-such-host.invalid/"}
    outcome = await with_settings(server, "apprise", note(server, "apprise"), **unknown)
    assert outcome == Deferred(None, "no connection to oncall")


async def test_whose_certificate_nobody_trusts_is_told_nothing_by_apprise(
    server: ChannelServer, certificate: Path
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())
        writer.close()

    heard: list[bytes] = []
    async with await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context) as listening:
        target = f"oncall=jsons://127.0.0.1:{listening.sockets[0].getsockname()[1]}/?cto=1"
        outcome = await with_settings(server, "apprise", note(server, "apprise"), PROCJOBS_APPRISE_TARGETS=target)
    assert outcome == Deferred(None, "no connection to oncall")
    assert heard in ([], [b""])


async def test_where_apprise_makes_no_request_of_http_its_no_is_all_there_is(server: ChannelServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    mail = {"PROCJOBS_APPRISE_TARGETS": f"oncall=mailto://ann:secret@127.0.0.1:{port}?from=a@b.example&to=c@d.example"}
    outcome = await with_settings(server, "apprise", note(server, "apprise"), **mail)
    assert outcome == Deferred(None, "oncall did not take it; apprise's own log says why")


async def test_each_message_by_apprise_has_an_outcome_of_its_own_and_other_requests_are_left_alone(
    server: ChannelServer,
) -> None:
    server.answers = [HANG]
    lost = asyncio.create_task(
        with_settings(server, "apprise", note(server, "apprise"), **oncall(server.port, "&rto=1"))
    )
    await server.hanging.wait()
    server.answers = [(503, "", {})]
    outcome = await with_settings(server, "apprise", note(server, "apprise"), **oncall(server.port))
    assert outcome == Deferred(503, "oncall did not take it")
    assert (await asyncio.to_thread(requests.post, f"{server.url}/apprise", json={}, timeout=5)).status_code == 200
    assert await lost == Ambiguous("oncall did not answer to what was sent")
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with pytest.raises(requests.ConnectionError):
        await asyncio.to_thread(requests.post, f"http://127.0.0.1:{port}/", timeout=5)


async def test_connections_are_kept(server: ChannelServer, channels: Channels) -> None:
    for _ in range(5):
        assert isinstance(await channels.send("sms", note(server)), Sent)
    assert len(server.connections) == 1


@pytest.mark.parametrize("method", ["sms", "whatsapp", "slack"])
async def test_long_texts_are_cut_before_the_link(server: ChannelServer, channels: Channels, method: str) -> None:
    assert isinstance(await channels.send(method, note(server, method, body="word " * 5000)), Sent)
    said = server.taken[0].content
    text = said.get("Body") or said["text"]
    text = text if isinstance(text, str) else text["body"]
    assert "…\n\nhttps://family.example/d/7" in text
    limit = {"sms": 1600, "whatsapp": 4096, "slack": 4000}[method]
    assert limit - 20 < len(text) <= limit


@pytest.mark.parametrize("limit", [1, 2, 20, 27, 28, 40, 200])
def test_a_text_is_never_longer_than_its_limit(limit: int) -> None:
    message = _Message(
        id=ID, to=PHONE, subject="Dinner at seven", body="b" * 50, link="https://a.example/1", at=datetime.now(UTC)
    )
    assert len(message.text(limit)) <= limit


# -- what answers mean ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sms", "whatsapp", "slack", "webhook"])
async def test_not_now_and_never(server: ChannelServer, channels: Channels, method: str) -> None:
    for status in (500, 502, 503, 408, 409, 425):
        server.answers = [(status, "<html>no</html>", {"retry-after": "7"})]
        outcome = await channels.send(method, note(server, method))
        assert isinstance(outcome, Deferred)
        assert (outcome.code, outcome.retry_after, outcome.limited) == (status, 7, False)
    for status in (400, 404, 413, 422):
        server.answers = [(status, "no", {})]
        outcome = await channels.send(method, note(server, method))
        assert isinstance(outcome, Refused) and outcome.code == status


@pytest.mark.parametrize("method", ["sms", "whatsapp", "slack", "webhook"])
async def test_too_much_at_a_time(server: ChannelServer, channels: Channels, method: str) -> None:
    server.answers = [(429, {}, {"retry-after": "30"}), (429, {}, {})]
    first = await channels.send(method, note(server, method))
    assert isinstance(first, Deferred) and (first.limited, first.retry_after) == (True, 30)
    second = await channels.send(method, note(server, method))
    assert isinstance(second, Deferred) and (second.limited, second.retry_after) == (True, None)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        (lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True), 80, 91),
        (lambda: format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True), 0, 0),
        (lambda: "99999999999", 86400, 86400),
        (lambda: "soon", None, None),
        (lambda: "-5", None, None),
        (lambda: "", None, None),
    ],
)
async def test_retry_after_is_seconds_or_a_date(
    server: ChannelServer, channels: Channels, value: Any, low: float | None, high: float | None
) -> None:
    server.answers = [(503, "", {"retry-after": value()})]
    outcome = await channels.send("webhook", note(server, "webhook"))
    assert isinstance(outcome, Deferred)
    if low is None or high is None:
        assert outcome.retry_after is None
    else:
        assert outcome.retry_after is not None and low <= outcome.retry_after <= high


@pytest.mark.parametrize("method", ["sms", "whatsapp", "slack", "webhook"])
async def test_no_answer_is_ambiguous_and_no_connection_is_not(server: ChannelServer, method: str) -> None:
    server.answers = [HANG]
    quick = {"PROCJOBS_CHANNEL_TIMEOUT": "0.3"}
    assert isinstance(await with_settings(server, method, note(server, method), **quick), Ambiguous)

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        nowhere = f"http://127.0.0.1:{port}"
        changes = {
            "PROCJOBS_TWILIO_URL": nowhere,
            "PROCJOBS_META_URL": nowhere,
            "PROCJOBS_SLACK_URL": nowhere,
            "PROCJOBS_OUTGOING_PORTS": str(port),
        }
        to = {"to": f"{nowhere}/hook"} if method == "webhook" else {}
        outcome = await with_settings(server, method, note(server, method, **to), **changes)
    assert isinstance(outcome, Deferred) and outcome.code is None


@pytest.mark.parametrize("method", METHODS)
async def test_it_says_that_a_message_leaves_before_it_does(server: ChannelServer, method: str) -> None:
    class NotNow(Exception):
        pass

    said: list[int] = []

    async def leaving() -> None:
        said.append(len(server.taken))
        if len(said) == 2:
            raise NotNow

    message = note(server, method, leaving=leaving)
    assert isinstance(await with_settings(server, method, message), Sent)
    with pytest.raises(NotNow):
        await with_settings(server, method, message)
    assert (said, len(server.taken)) == ([0, 1], 1)


TWILIO = [
    (twilio_error(400, 21610, "Attempt to send to unsubscribed recipient"), Refused, "21610"),
    (twilio_error(400, 63016, "Failed to send freeform message outside the allowed window"), Refused, "63016"),
    (twilio_error(400, 21606, "The From phone number is not a valid, SMS-capable number"), Deferred, "21606"),
    (twilio_error(429, 20429, "Too Many Requests"), Deferred, "20429"),
    ((201, {"sid": "SM1", "status": "failed", "error_code": 30007}, {}), Refused, "30007"),
]


@pytest.mark.parametrize(("answer", "kind", "code"), TWILIO, ids=lambda value: value if isinstance(value, str) else "")
async def test_twilio_errors(server: ChannelServer, channels: Channels, answer: Any, kind: Any, code: str) -> None:
    server.answers = [answer]
    outcome = await channels.send("sms", note(server))
    assert isinstance(outcome, kind) and outcome.provider_code == code
    assert code in outcome.reply


async def test_twilio_shows_no_number_and_a_wrong_token_is_ours_to_mend(server: ChannelServer) -> None:
    outcome = await with_settings(server, "sms", note(server, to="+15005550001"))
    assert isinstance(outcome, Refused) and "15005550001" not in outcome.reply and "21211" in outcome.reply
    outcome = await with_settings(server, "sms", note(server), PROCJOBS_TWILIO_AUTH_TOKEN="another")
    assert isinstance(outcome, Deferred) and (outcome.code, outcome.provider_code) == (401, "20003")


META = [
    (meta_error(400, 131026, "Message undeliverable", "Message Undeliverable."), Refused, False),
    (meta_error(400, 131047, "Re-engagement message"), Refused, False),
    (meta_error(400, 132001, "Template name does not exist in the translation"), Refused, False),
    (meta_error(400, 130429, "Rate limit hit"), Deferred, True),
    (meta_error(400, 131056, "Business account, consumer account pair rate limit hit"), Deferred, True),
    (meta_error(401, 190, "Access token has expired"), Deferred, False),
    (meta_error(400, 131016, "Service unavailable"), Deferred, False),
]


@pytest.mark.parametrize(("answer", "kind", "limited"), META, ids=lambda value: "")
async def test_meta_errors(server: ChannelServer, channels: Channels, answer: Any, kind: Any, limited: bool) -> None:
    server.answers = [answer]
    outcome = await channels.send("whatsapp", note(server, "whatsapp"))
    assert isinstance(outcome, kind) and getattr(outcome, "limited", False) is limited
    assert outcome.provider_code == str(answer[1]["error"]["code"])


SLACK = [
    ("channel_not_found", Refused, False),
    ("is_archived", Refused, False),
    ("msg_too_long", Refused, False),
    ("something_new", Refused, False),
    ("invalid_auth", Deferred, False),
    ("missing_scope", Deferred, False),
    ("ratelimited", Deferred, True),
    ("internal_error", Deferred, False),
]


@pytest.mark.parametrize(("name", "kind", "limited"), SLACK)
async def test_slack_errors(server: ChannelServer, channels: Channels, name: str, kind: Any, limited: bool) -> None:
    server.answers = [(200, {"ok": False, "error": name}, {})]
    outcome = await channels.send("slack", note(server, "slack"))
    assert isinstance(outcome, kind) and getattr(outcome, "limited", False) is limited
    assert outcome.provider_code == name


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [(404, "no_service", Refused), (410, "channel_is_archived", Refused), (500, "rollup_error", Deferred)],
)
async def test_slack_webhook_errors(
    server: ChannelServer, channels: Channels, status: int, said: str, kind: Any
) -> None:
    server.answers = [(status, said, {})]
    outcome = await channels.send("slack", note(server, "slack", to="#ops"))
    assert isinstance(outcome, kind) and outcome.provider_code == said


HALF = '{"sid": "SM1", "ok": true, "channel": "C1", "ts": "1.2", "messages": [{"id": "wamid.'


@pytest.mark.parametrize("said", ["<html><h1>Log in to the network</h1></html>", "", "[1, 2]", "{}", HALF])
@pytest.mark.parametrize("to", ["sms", "whatsapp", "slack", "#ops"])
async def test_an_ok_that_is_not_the_providers_does_not_say_that_it_was_sent(
    server: ChannelServer, channels: Channels, to: str, said: str
) -> None:
    server.answers = [(200, said, {})]
    method = "slack" if to == "#ops" else to
    message = note(server, method, to=to) if to == "#ops" else note(server, method)
    outcome = await channels.send(method, message)
    assert isinstance(outcome, Ambiguous) and outcome.code == 200
    assert "not an answer of" in outcome.reply


@pytest.mark.parametrize("to", ["sms", "whatsapp", "slack", "#ops"])
async def test_a_provider_that_redirects_is_asked_again(server: ChannelServer, channels: Channels, to: str) -> None:
    server.answers = [(302, "", {"location": f"{server.url}/hook"})]
    method = "slack" if to == "#ops" else to
    message = note(server, method, to=to) if to == "#ops" else note(server, method)
    outcome = await channels.send(method, message)
    assert isinstance(outcome, Deferred) and "not followed" in outcome.reply
    assert len(server.taken) == 1


async def test_a_webhook_that_redirects_or_is_gone_is_refused(server: ChannelServer, channels: Channels) -> None:
    server.answers = [(302, "", {"location": f"{server.url}/hook"}), (410, "", {})]
    for status in (302, 410):
        outcome = await channels.send("webhook", note(server, "webhook"))
        assert isinstance(outcome, Refused) and outcome.code == status
    assert len(server.taken) == 2


async def test_an_answer_without_end_is_not_read_to_its_end(server: ChannelServer, channels: Channels) -> None:
    server.answers = [(200, endless(0), {}), (400, endless(0), {})]
    async with asyncio.timeout(5):  # the exchange would get six seconds
        assert isinstance(await channels.send("webhook", note(server, "webhook")), Sent)
        outcome = await channels.send("slack", note(server, "slack"))
    assert isinstance(outcome, Refused) and len(outcome.reply) < 2001


async def test_an_answer_that_drips_is_not_waited_for(server: ChannelServer) -> None:
    server.answers = [(200, endless(0.05), {})]
    async with asyncio.timeout(10):
        quick = {"PROCJOBS_CHANNEL_TIMEOUT": "0.3"}
        assert isinstance(await with_settings(server, "webhook", note(server, "webhook"), **quick), Sent)


@pytest.mark.parametrize("method", ["slack", "webhook"])
async def test_cookies_are_not_kept(server: ChannelServer, channels: Channels, method: str) -> None:
    server.answers = [(200, {"ok": True}, {"set-cookie": "a=b; Path=/"})]
    for _ in range(2):
        await channels.send(method, note(server, method))
    assert [taken.headers.get("cookie") for taken in server.taken] == [None, None]


@pytest.mark.parametrize("to", ["http://[::1/", "http://exa mple/", "http://a..b/", "mailto:a@b.example"])
async def test_what_is_no_url_is_refused(server: ChannelServer, channels: Channels, to: str) -> None:
    assert isinstance(await channels.send("webhook", note(server, "webhook", to=to)), Refused | Deferred)


# -- whether it is set up ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
async def test_without_settings_it_is_deferred_with_the_mend(server: ChannelServer, method: str) -> None:
    channels = Channels(Settings.load(environ={}))
    outcome = await channels.send(method, note(server, method))
    assert isinstance(outcome, Deferred) and "set PROCJOBS_" in outcome.reply
    assert channel_state(Settings.load(environ={}), method).state == "off"


@pytest.mark.parametrize("method", METHODS)
async def test_without_its_package_it_is_deferred_with_the_mend(
    server: ChannelServer, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = "apprise" if method == "apprise" else "httpx2"
    monkeypatch.setitem(__import__("sys").modules, package, None)
    for name in ("http", "apprise", "twilio", "meta", "slack", "webhook"):
        monkeypatch.delitem(__import__("sys").modules, f"procjobs.channels.{name}", raising=False)
    outcome = await with_settings(server, method, note(server, method))
    extra = "apprise" if method == "apprise" else "channels"
    assert (
        isinstance(outcome, Deferred) and outcome.reply == f"{method} needs {package}: pip install 'procjobs[{extra}]'"
    )


@pytest.mark.parametrize(
    ("environ", "method", "missing"),
    [
        ({"PROCJOBS_TWILIO_AUTH_TOKEN": "x"}, "sms", ("twilio_account_sid", "twilio_from")),
        ({"PROCJOBS_WHATSAPP_PROVIDER": "meta"}, "whatsapp", ("meta_phone_number_id", "meta_access_token")),
        ({"PROCJOBS_META_ACCESS_TOKEN": "x"}, "whatsapp", ("whatsapp_provider",)),
    ],
)
def test_half_a_set_up_is_told(environ: dict[str, str], method: str, missing: tuple[str, ...]) -> None:
    state = channel_state(Settings.load(environ=environ), method)
    assert (state.state, state.missing) == ("half", missing)


def test_secrets_are_masked_wherever_settings_are_shown(server: ChannelServer) -> None:
    settings = Settings.load(environ=server.environ())
    shown = f"{settings!r} {settings.shown()}"
    for secret in (TWILIO_TOKEN, META_TOKEN, SIGNING_KEY, SLACK_HOOK, "canary"):
        assert secret not in shown
