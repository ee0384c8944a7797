"""Channels beside mail: sms, whatsapp, slack, webhook, and any other service through apprise.

    await channels.send("sms", message)  ->  Sent | Deferred | Refused | Ambiguous

Each provider is a file here that keeps the protocol `Provider`, and a maker in `_MAKERS`; it is imported when it is
first used. What providers say is stripped of secrets and addresses before anybody keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from procjobs.channels.message import Message, Provider
from procjobs.channels.setup import METHODS, ChannelState, channel_state, secrets_of
from procjobs.mail import Deferred, Outcome

if TYPE_CHECKING:
    from procjobs.settings import Settings

__all__ = ["METHODS", "ChannelState", "Channels", "Message", "Provider", "channel_state"]


class Channels:
    """The channels of these settings, each made when it is first used and kept open until `close`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._providers: dict[str, Provider] = {}
        self._secrets = secrets_of(settings)

    async def send(self, method: str, message: Message) -> Outcome:
        """Send one message and say what became of it. Without its settings or packages it is Deferred with the mend."""
        state = channel_state(self._settings, method)
        if state.state != "ready":
            return _unprepared(f"{method} is not set up on this worker: {state.mend}")
        try:
            provider = self._provider(method)
        except ImportError as error:
            return _unprepared(self._missing(method, error))
        outcome = await provider.send(message)
        return replace(outcome, reply=self._shown(outcome.reply, message.to if method in _BY_PHONE else None))

    def provider(self, method: str) -> str:
        """Who takes messages of a method, for the record; "none" before the first."""
        made = self._providers.get(method)
        return made.name if made is not None else "none"

    async def close(self) -> None:
        """Close every connection; safe to call twice, and the channels may be used again."""
        providers, self._providers = self._providers, {}
        for provider in providers.values():
            await provider.close()

    def missing(self, method: str) -> str | None:
        """The sentence for a package that the method needs and that is not installed."""
        try:
            self._provider(method)
        except ImportError as error:
            return self._missing(method, error)
        return None

    def _provider(self, method: str) -> Provider:
        if method not in self._providers:
            self._providers[method] = _MAKERS[method](self._settings)
        return self._providers[method]

    def _missing(self, method: str, error: ImportError) -> str:
        extra = "apprise" if error.name == "apprise" else "channels"
        return f"{method} needs {error.name}: pip install 'procjobs[{extra}]'"

    def _shown(self, words: str, phone: str | None) -> str:
        for secret in self._secrets:
            words = words.replace(secret, "********")
        if phone is not None:
            words = words.replace(phone, "the number").replace(phone.removeprefix("+"), "the number")
        return words.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")[:2000]


def _unprepared(words: str) -> Deferred:
    return Deferred(None, words, provider_code="not_set_up", unprepared=True)


#: Methods whose address is a phone number, which is in no error.
_BY_PHONE = frozenset({"sms", "whatsapp"})


def _twilio(settings: Settings, *, whatsapp: bool) -> Provider:
    from procjobs.channels.http import Http
    from procjobs.channels.twilio import Twilio

    return Twilio(
        Http.pooled(settings.channel_timeout),
        url=settings.twilio_url,
        account=settings.twilio_account_sid or "",
        token=settings.twilio_auth_token or "",
        sender=(settings.whatsapp_from if whatsapp else settings.twilio_from) or "",
        whatsapp=whatsapp,
        template=settings.whatsapp_template if whatsapp else None,
    )


def _sms(settings: Settings) -> Provider:
    return _twilio(settings, whatsapp=False)


def _whatsapp(settings: Settings) -> Provider:
    if settings.whatsapp_provider == "twilio":
        return _twilio(settings, whatsapp=True)
    from procjobs.channels.http import Http
    from procjobs.channels.meta import MetaWhatsApp

    return MetaWhatsApp(
        Http.pooled(settings.channel_timeout),
        url=settings.meta_url,
        number=settings.meta_phone_number_id or "",
        token=settings.meta_access_token or "",
        template=settings.whatsapp_template,
        language=settings.whatsapp_language,
    )


def _slack(settings: Settings) -> Provider:
    from procjobs.channels.http import Http
    from procjobs.channels.slack import Slack

    return Slack(
        Http.pooled(settings.channel_timeout),
        url=settings.slack_url,
        token=settings.slack_token,
        webhooks=dict(settings.slack_webhooks or ()),
    )


def _webhook(settings: Settings) -> Provider:
    from procjobs.channels.http import Http
    from procjobs.channels.webhook import Webhook
    from procjobs.net import Reach, guarded_client

    client = guarded_client(Reach.of(settings), timeout=settings.channel_timeout)
    return Webhook(Http(client, settings.channel_timeout), secrets=settings.webhook_secret or ())


def _apprise(settings: Settings) -> Provider:
    from procjobs.channels.apprise import Apprise

    return Apprise(targets=dict(settings.apprise_targets or ()))


_MAKERS: dict[str, Callable[[Settings], Provider]] = {
    "sms": _sms,
    "whatsapp": _whatsapp,
    "slack": _slack,
    "webhook": _webhook,
    "apprise": _apprise,
}
