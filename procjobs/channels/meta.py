"""WhatsApp through Meta's Cloud API.

Source: Meta's documentation of the Cloud API, messages and error codes. There is no idempotency key; the notification's
id goes along as `biz_opaque_callback_data`, by which status webhooks name it.
"""

from __future__ import annotations

from typing import Any

from procjobs.channels.answer import Answer, by_status, unlike
from procjobs.channels.http import Http
from procjobs.channels.message import Message
from procjobs.mail import Deferred, Outcome, Refused, Sent

__all__ = ["WHATSAPP_LIMIT", "MetaWhatsApp"]

#: Characters that a text message may have; a template's parameter 1024.
WHATSAPP_LIMIT = 4096
_PARAMETER_LIMIT = 1024

#: Ours to mend: token, permissions, account, payment.
_OURS = frozenset({0, 3, 10, 190, 368, 131005, 131031, 131042, 131045, 133010, *range(200, 300)})
#: Too much at a time.
_LIMITED = frozenset({4, 17, 32, 613, 80007, 130429, 131048, 131056, 133016})
#: Passes by itself.
_NOT_NOW = frozenset({1, 2, 131000, 131016, 131057, 133004})


class MetaWhatsApp:
    """One sender's number. template: name of an approved template whose body has one variable; without one, only
    people who wrote within the last 24 hours can be reached (131047)."""

    def __init__(
        self, http: Http, *, url: str, number: str, token: str, template: str | None = None, language: str = "en"
    ) -> None:
        self.name = "meta"
        self._http = http
        self._url = f"{url}/{number}/messages"
        self._headers = {"Authorization": f"Bearer {token}"}
        self._template = template
        self._language = language

    async def send(self, message: Message) -> Outcome:
        content = {
            "messaging_product": "whatsapp",
            "recipient_type": "individual",
            "to": message.to,
            "biz_opaque_callback_data": message.id,
            **self._written(message),
        }
        answer = await self._http.post(self._url, json=content, headers=self._headers, leaving=message.leaving)
        return judge(answer) if isinstance(answer, Answer) else answer

    async def close(self) -> None:
        await self._http.close()

    def _written(self, message: Message) -> dict[str, Any]:
        if not self._template:
            return {"type": "text", "text": {"preview_url": False, "body": message.text(WHATSAPP_LIMIT)}}
        parameter = {"type": "text", "text": message.line(_PARAMETER_LIMIT)}
        return {
            "type": "template",
            "template": {
                "name": self._template,
                "language": {"code": self._language},
                "components": [{"type": "body", "parameters": [parameter]}],
            },
        }


def judge(answer: Answer) -> Outcome:
    """What Meta's answer means: its error code says more than the status, which is 400 for most."""
    said = answer.json
    if answer.status < 300 and "error" not in said:
        sent = said.get("messages")
        first = sent[0] if isinstance(sent, list) and sent and isinstance(sent[0], dict) else {}
        if not isinstance(first.get("id"), str):
            return unlike(answer, "Meta")
        return Sent(answer.status, str(first.get("message_status") or "accepted"), provider_id=first["id"])
    found = said.get("error")
    error: dict[str, Any] = found if isinstance(found, dict) else {}
    number = error.get("code") if isinstance(error.get("code"), int) else None
    words = _words(error, number) or f"HTTP {answer.status}"
    code = str(number) if number is not None else None
    if number in _LIMITED:
        return Deferred(answer.status, words, provider_code=code, retry_after=answer.retry_after, limited=True)
    if number in _OURS or answer.status == 401:
        return Deferred(answer.status, f"{words}; check the meta_ settings", provider_code=code)
    if number in _NOT_NOW:
        return Deferred(answer.status, words, provider_code=code, retry_after=answer.retry_after)
    if answer.status < 300:
        return Refused(answer.status, words, provider_code=code)
    return by_status(answer, words, code=code)


def _words(error: dict[str, Any], number: int | None) -> str:
    data = error.get("error_data")
    details = data.get("details") if isinstance(data, dict) else None
    message = " ".join(str(part) for part in (error.get("message"), details) if part)
    return message if not message or number is None or str(number) in message else f"{number}: {message}"
