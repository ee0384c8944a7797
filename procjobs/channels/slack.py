"""Slack: chat.postMessage with a bot's token, and incoming webhooks.

Source: Slack's documentation of chat.postMessage, of incoming webhooks and their errors, and of rate limits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from procjobs.channels.answer import Answer, by_status, unlike
from procjobs.channels.http import Http
from procjobs.channels.message import Message
from procjobs.mail import Deferred, Outcome, Refused, Sent

__all__ = ["SLACK_LIMIT", "Slack"]

#: Characters that Slack advises a message to have at most.
SLACK_LIMIT = 4000

#: Ours to mend: the token, the app's rights.
_OURS = frozenset(
    {
        "access_denied",
        "account_inactive",
        "ekm_access_denied",
        "invalid_auth",
        "invalid_token",
        "missing_scope",
        "no_permission",
        "not_allowed_token_type",
        "not_authed",
        "org_login_required",
        "token_expired",
        "token_revoked",
    }
)
_LIMITED = frozenset({"ratelimited", "rate_limited", "message_limit_exceeded"})
#: Passes by itself.
_NOT_NOW = frozenset(
    {"internal_error", "fatal_error", "service_unavailable", "request_timeout", "team_added_to_org", "rollup_error"}
)


class Slack:
    """One workspace. webhooks: incoming webhooks by the address that they stand for, e.g. "#ops"; they go first."""

    def __init__(self, http: Http, *, url: str, token: str | None, webhooks: Mapping[str, str]) -> None:
        self.name = "slack"
        self._http = http
        self._url = f"{url}/chat.postMessage"
        self._token = token
        self._webhooks = dict(webhooks)

    async def send(self, message: Message) -> Outcome:
        if message.to in self._webhooks:
            answer = await self._http.post(
                self._webhooks[message.to], json={"text": written(message)}, leaving=message.leaving
            )
            return judge_webhook(answer) if isinstance(answer, Answer) else answer
        if not self._token:
            return Deferred(
                None,
                f"no incoming webhook stands for {message.to}: add it to slack_webhooks, or set slack_token",
                provider_code="no_target",
                unprepared=True,
            )
        # The same at every try: Slack knows a second copy by it.
        content = {
            "channel": message.to,
            "text": written(message),
            "client_msg_id": message.id,
            "unfurl_links": False,
        }
        headers = {"Authorization": f"Bearer {self._token}"}
        answer = await self._http.post(self._url, json=content, headers=headers, leaving=message.leaving)
        return judge(answer) if isinstance(answer, Answer) else answer

    async def close(self) -> None:
        await self._http.close()


def written(message: Message) -> str:
    """The text in Slack's mrkdwn, where &, < and > are its own."""
    subject = _escaped(message.subject).replace("*", "∗")
    rest = _escaped(message.text(SLACK_LIMIT - len(message.subject) - 4, subject=False))
    return f"*{subject}*\n{rest}" if rest else f"*{subject}*"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def judge(answer: Answer) -> Outcome:
    """What chat.postMessage answered: 200 with ok true or false, or 429."""
    said = answer.json
    if answer.status == 200 and said.get("ok") is True:
        return Sent(200, "ok", provider_id=f"{said.get('channel')}/{said.get('ts')}")
    return _by_name(answer, str(said.get("error") or ""))


def judge_webhook(answer: Answer) -> Outcome:
    """What an incoming webhook answered: `ok`, or the error's name as plain text."""
    if answer.status == 200 and answer.text == "ok":
        return Sent(200, "ok")
    return _by_name(answer, answer.text)


def _by_name(answer: Answer, said: str) -> Outcome:
    name = said if re.fullmatch(r"[a-z_]{1,60}", said) else ""
    code = name or None
    if name in _LIMITED:
        return Deferred(answer.status, name, provider_code=code, retry_after=answer.retry_after, limited=True)
    if name in _OURS:
        return Deferred(answer.status, f"{name}: check slack_token and the app's rights", provider_code=code)
    if name in _NOT_NOW:
        return Deferred(answer.status, name, provider_code=code, retry_after=answer.retry_after)
    if answer.status < 300:
        return Refused(answer.status, name, provider_code=code) if name else unlike(answer, "Slack")
    return by_status(answer, name or f"HTTP {answer.status}", code=code)
