"""Which channels are set up, from the settings alone: nothing is imported that may not be installed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from procjobs.settings import Settings

__all__ = ["METHODS", "ChannelState", "channel_state", "secrets_of"]

#: Delivery methods beside email.
METHODS = ("sms", "whatsapp", "slack", "webhook", "apprise")
#: The settings that only this channel has, or one of which it needs.
_OWN = {
    "sms": ("twilio_account_sid", "twilio_auth_token", "twilio_from"),
    "whatsapp": (
        "whatsapp_provider",
        "whatsapp_from",
        "whatsapp_template",
        "meta_phone_number_id",
        "meta_access_token",
    ),
    "slack": ("slack_token", "slack_webhooks"),
    "webhook": ("webhook_secret",),
    "apprise": ("apprise_targets",),
}


@dataclass(frozen=True, slots=True)
class ChannelState:
    """ready; off: none of its settings is set; half: some are, and `missing` are not."""

    method: str
    state: Literal["ready", "off", "half"]
    missing: tuple[str, ...] = ()

    @property
    def mend(self) -> str:
        return f"set {' and '.join(f'PROCJOBS_{name.upper()}' for name in self.missing)}"


def channel_state(settings: Settings, method: str) -> ChannelState:
    """Whether a delivery method can be used with these settings."""
    missing = tuple(name for name in _needed(settings, method) if not getattr(settings, name))
    if not missing:
        return ChannelState(method, "ready")
    if method == "sms" and missing == ("twilio_from",) and settings.whatsapp_provider == "twilio":
        return ChannelState(method, "off", missing)  # the account is there for WhatsApp
    begun = any(getattr(settings, name) for name in _OWN[method])
    return ChannelState(method, "half" if begun else "off", missing)


def _needed(settings: Settings, method: str) -> tuple[str, ...]:
    match method, settings.whatsapp_provider:
        case "whatsapp", "twilio":
            return ("twilio_account_sid", "twilio_auth_token", "whatsapp_from")
        case "whatsapp", "meta":
            return ("meta_phone_number_id", "meta_access_token")
        case "whatsapp", _:
            return ("whatsapp_provider",)
        case "slack", _:
            return () if settings.slack_webhooks else ("slack_token",)
    return _OWN[method]


def secrets_of(settings: Settings) -> tuple[str, ...]:
    """Every text in the channels' settings that nobody may read, the longest first."""
    found: set[str] = set()
    for name in ("twilio_auth_token", "meta_access_token", "slack_token"):
        found.add(getattr(settings, name) or "")
    for key in settings.webhook_secret or ():
        found |= {key, key.removeprefix("whsec_")}
    for _, url in (*(settings.slack_webhooks or ()), *(settings.apprise_targets or ())):
        # Of a URL what follows the host is the secret; it may be shown without the rest.
        found |= {url, url.partition("://")[2].partition("/")[2]}
    return tuple(sorted((text for text in found if len(text) >= 8), key=len, reverse=True))
