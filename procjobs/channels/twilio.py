"""Twilio: SMS, and WhatsApp by the same call.

Source: Twilio's documentation of the Messages resource and its dictionary of errors. It promises no idempotency key for
this call: `I-Twilio-Idempotency-Token` is documented for Twilio's own requests only. It goes along, the same at every
try, but what ended unknown may be sent twice.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from procjobs.channels.answer import Answer, by_status, unlike
from procjobs.channels.http import Http
from procjobs.channels.message import Message
from procjobs.mail import Deferred, Outcome, Refused

__all__ = ["SMS_LIMIT", "Twilio"]

#: Characters that one message may have, by SMS and by WhatsApp.
SMS_LIMIT = 1600

#: Ours to mend (login, account, sender), not the recipient's fault.
_OURS = frozenset({20003, 20005, 21212, 21603, 21606, 21608, 21659, 21660, 21661, 63007})
#: Too much at a time.
_LIMITED = frozenset({20429, 14107, 21611, 30001, 30022, 63018})


class Twilio:
    """One account. sender: a number, an alphanumeric sender, or a messaging service (MG...).

    template: for WhatsApp, the SID (HX...) of a content template whose variable 1 takes the text: without one, only
    people who wrote within the last 24 hours can be reached (63016).
    """

    def __init__(
        self,
        http: Http,
        *,
        url: str,
        account: str,
        token: str,
        sender: str,
        whatsapp: bool,
        template: str | None = None,
    ) -> None:
        self.name = "twilio"
        self._http = http
        self._url = f"{url}/2010-04-01/Accounts/{account}/Messages.json"
        self._auth = (account, token)
        self._prefix = "whatsapp:" if whatsapp else ""
        self._from = {"MessagingServiceSid": sender} if sender.startswith("MG") else {"From": self._prefix + sender}
        self._template = template

    async def send(self, message: Message) -> Outcome:
        form = {"To": self._prefix + message.to, **self._from}
        if self._template:
            variables = json.dumps({"1": message.line(SMS_LIMIT)}, ensure_ascii=False)
            form |= {"ContentSid": self._template, "ContentVariables": variables}
        else:
            form["Body"] = message.text(SMS_LIMIT)
        headers = {"I-Twilio-Idempotency-Token": message.id}
        answer = await self._http.post(self._url, data=form, auth=self._auth, headers=headers, leaving=message.leaving)
        return judge(answer) if isinstance(answer, Answer) else answer

    async def close(self) -> None:
        await self._http.close()


def judge(answer: Answer) -> Outcome:
    """What Twilio's answer means."""
    said = answer.json
    code = said.get("error_code") if answer.status < 300 else said.get("code")
    number = code if isinstance(code, int) else None
    words = _words(said, number) or f"HTTP {answer.status}"
    outcome = by_status(answer, words, code=str(number) if number else None, provider_id=_text(said.get("sid")))
    if answer.status < 300:
        if said.get("status") in ("failed", "undelivered"):
            return Refused(answer.status, words, provider_code=str(number) if number else None)
        if not _text(said.get("sid")):
            return unlike(answer, "Twilio")
        return replace(outcome, reply=str(said.get("status") or "accepted"))
    if number in _LIMITED:
        return Deferred(answer.status, words, provider_code=str(number), retry_after=answer.retry_after, limited=True)
    if number in _OURS or answer.status == 401:
        return Deferred(
            answer.status, f"{words}; check the twilio_ settings", provider_code=str(number) if number else None
        )
    return outcome


def _words(said: dict[str, Any], number: int | None) -> str:
    message = said.get("message") or said.get("error_message") or ""
    return f"{number}: {message}" if number else str(message)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
