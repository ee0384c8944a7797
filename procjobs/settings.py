"""Settings: one frozen object, from defaults < procjobs.toml < environment < flags.

A field `smtp_host` is `PROCJOBS_SMTP_HOST` in the environment and `smtp_host = "..."`, or `host` in the table `[smtp]`,
in procjobs.toml. `DATABASE_URL` means `dsn`; `CRON_TIMEZONE` and `ENABLE_...` go without `PROCJOBS_`, too. A flag of
None is one that was not given. An empty environment variable is one that is not set.
"""

from __future__ import annotations

import base64
import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields, replace
from datetime import date
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from procjobs.errors import SettingsError

__all__ = ["Settings", "split_address"]

FILE = "procjobs.toml"
_MASK = "********"

Reader = Callable[[Any], Any]


def _setting(default: Any, read: Reader, about: str, *, secret: bool = False) -> Any:
    """A field: how a value from outside is read, and one line that says what it is for."""
    return field(default=default, repr=not secret, metadata={"read": read, "about": about, "secret": secret})


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("write a text")
    if any(ord(character) < 32 for character in value):
        raise ValueError("leave out line breaks and control characters")
    return value


def _dsn(value: Any) -> str:
    found = _text(value)
    try:
        conninfo_to_dict(found)
    except ProgrammingError:  # its message shows the text, and with it a password
        raise ValueError("write a URL, e.g. postgresql://user@host/database, or key=value pairs") from None
    return found


def _path(value: Any) -> Path:
    return value if isinstance(value, Path) else Path(_text(value)).expanduser()


def _whole(low: int, high: int) -> Reader:
    def read(value: Any) -> int:
        mend = f"write a whole number from {low} to {high}"
        try:
            number = int(str(value))
        except ValueError:
            raise ValueError(mend) from None
        if isinstance(value, bool) or not low <= number <= high:
            raise ValueError(mend)
        return number

    return read


_UNITS = {"": 1.0, "s": 1.0, "ms": 0.001, "min": 60.0, "m": 60.0, "h": 3600.0}


def _seconds(low: float, high: float) -> Reader:
    def read(value: Any) -> float:
        mend = f"write seconds from {low:g} to {high:g}, or with a unit: 500ms, 10s, 5min, 1h"
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|m|h)?\s*", str(value))
        if found is None or isinstance(value, bool):
            raise ValueError(mend)
        seconds = float(found.group(1)) * _UNITS[found.group(2) or ""]
        if not low <= seconds <= high:
            raise ValueError(mend)
        return seconds

    return read


_SWITCHES = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _switch(value: Any) -> bool:
    found = _SWITCHES.get(str(value).strip().lower())
    if found is None:
        raise ValueError("write true or false")
    return found


def _word(value: Any) -> str:
    found = _text(value).strip()
    if not re.fullmatch(r"[\w.-]{1,64}", found):
        raise ValueError("write a word, e.g. staging")
    return found


def _one_of(*choices: str) -> Reader:
    def read(value: Any) -> str:
        found = str(value).strip().lower()
        if found not in choices:
            raise ValueError(f"write one of {', '.join(choices)}")
        return found

    return read


def _names(value: Any) -> tuple[str, ...]:
    """`a,b` or ["a", "b"]; nothing at all is every queue."""
    listed = value.split(",") if isinstance(value, str) else list(value)
    names = tuple(_text(name).strip() for name in listed)
    if not names or not all(names) or any(len(name) > 128 for name in names):
        raise ValueError("write names of at most 128 characters, with commas between them")
    return names


def _hosts(value: Any) -> tuple[str, ...]:
    """Host names, addresses and networks."""
    found = _names(value)
    for name in found:
        try:
            ip_network(name, strict=False)
        except ValueError:
            if not re.fullmatch(r"[\w.-]+", name):
                raise ValueError(f"{name!r} is neither a host name nor a network such as 10.0.0.0/8") from None
    return found


def _token(value: Any) -> str:
    """What goes into a header of a request."""
    found = _text(value).strip()
    if not (found.isascii() and found.isprintable() and " " not in found):
        raise ValueError("write it as the provider shows it: it has only letters, digits and signs of ASCII")
    return found


def _dotted(value: Any) -> str:
    found = _text(value)
    if not re.fullmatch(r"\w+(\.\w+)*[.:]\w+", found):
        raise ValueError("write the path of your App, e.g. myapp.tasks.app")
    return found.replace(":", ".")


def _url(value: Any) -> str:
    found = _text(value).rstrip("/")
    parts = urlsplit(found)
    if parts.scheme not in {"http", "https"} or not _is_host(parts.hostname or ""):
        raise ValueError("write a URL, e.g. https://jobs.example.com")
    return found


def _is_host(name: str) -> bool:
    """Whether it is an address, or a name that can be looked up."""
    try:
        ip_address(name)
    except ValueError:
        with suppress(UnicodeError):  # a label that is empty or too long
            return re.fullmatch(r"[\w.-]+", name) is not None and name.encode("idna") != b""
        return False
    return True


def _host(value: Any) -> str:
    found = _text(value).strip()
    if found.startswith("[") and found.endswith("]"):
        found = found[1:-1]
    if not _is_host(found):
        raise ValueError("write the name of a host or its address, without a port: mail.example.com")
    return found


_QUOTED = r'"(?:[^"\\]|\\.)*"'
_SENDER = re.compile(rf"\s*(?:(?P<name>{_QUOTED}|[^<>@]*?)\s*<(?P<within>[^<>]*)>|(?P<alone>[^<>]*?))\s*")
#: The part before the @ in ASCII: as a sender one beyond it would need every server on the way to take such.
_PLAIN = re.compile(r"[^\s@<>\"(),:;\[\]\\\x00-\x1f\x7f-\U0010ffff]+@[^\s@<>\"(),:;\[\]\\\x00-\x1f\x7f]+")


def split_address(value: str) -> tuple[str, str]:
    """Name and address of `Name <name@domain>` or `name@domain`. Raises ValueError for what no mail can come from."""
    found = _SENDER.fullmatch(value)
    name, address = (found["name"] or "", found["within"] or found["alone"] or "") if found else ("", "")
    if len(name) > 1 and name.startswith('"') and name.endswith('"'):
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    try:
        good = _PLAIN.fullmatch(address) is not None and address.rpartition("@")[2].encode("idna") != b""
    except UnicodeError:  # a label that is empty or too long
        good = False
    if not good:
        raise ValueError("write an address, e.g. team@example.com or Team <team@example.com>")
    return name, address


def _address(value: Any) -> str:
    found = _text(value)
    split_address(found)
    return found


def _color(value: Any) -> str:
    found = _text(value)
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", found):
        raise ValueError("write a colour as #rrggbb")
    return found.lower()


def _uploads(value: Any) -> str:
    found = _text(str(value) if isinstance(value, Path) else value)
    parts = urlsplit(found)
    if "://" in found and (parts.scheme != "s3" or not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,62}", parts.netloc)):
        raise ValueError("write a folder, or a bucket as s3://bucket or s3://bucket/prefix/")
    return found


def _ports(value: Any) -> tuple[int, ...]:
    read = _whole(1, 65535)
    listed = str(value).split(",") if isinstance(value, str | int) else list(value)
    return tuple(read(str(port).strip()) for port in listed)


def _named_urls(value: Any) -> tuple[tuple[str, str], ...]:
    """`name=url name=url`, with spaces between."""
    pairs = [entry.partition("=")[::2] for entry in _text(value).split()]
    if not pairs or not all(re.fullmatch(r"[#@]?[\w.-]{1,80}", name) and "://" in url for name, url in pairs):
        raise ValueError("write NAME=URL, with spaces between several")
    return tuple(pairs)


def _signing_keys(value: Any) -> tuple[str, ...]:
    keys = tuple(_text(value).split())
    for key in keys:
        try:
            known = len(base64.b64decode(key.removeprefix("whsec_"), validate=True)) >= 24
        except ValueError:
            known = False
        if not known:
            raise ValueError("write whsec_ and the base64 of 24 or more random bytes, the newest key first")
    return keys


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be configured. Times are in seconds. None means unset."""

    dsn: str | None = _setting(None, _dsn, "PostgreSQL to use: a URL or key=value pairs", secret=True)
    listen_dsn: str | None = _setting(
        None, _dsn, "Direct connection for LISTEN where dsn goes through a pooler", secret=True
    )
    data: Path = _setting(Path(".procjobs"), _path, "Folder of `procjobs up`")
    host: str = _setting("127.0.0.1", _text, "Address the web pages listen on")
    port: int = _setting(8080, _whole(0, 65535), "Port of the web pages; 0 is any free one")
    base_url: str | None = _setting(None, _url, "How users reach the web pages; used in links")
    home_url: str | None = _setting(None, _url, "Your application, where pages for its people lead on to")
    app: str | None = _setting(None, _dotted, "Path of your procjobs.App, e.g. myapp.tasks.app")
    host_sql: Path | None = _setting(None, _path, "Your bindings of procjobs to your tables")

    concurrency: int = _setting(10, _whole(1, 10_000), "Jobs a worker runs at a time")
    queues: tuple[str, ...] | None = _setting(None, _names, "Queues a worker claims from; unset is all")
    heartbeat_interval: float = _setting(10.0, _seconds(0.05, 3600), "Time between a worker's heartbeats")
    lease: float = _setting(30.0, _seconds(0.1, 86400), "A worker silent for this long is dead")
    poll_interval: float = _setting(5.0, _seconds(0.05, 3600), "A worker looks for jobs this often without being told")
    shutdown_timeout: float = _setting(30.0, _seconds(0, 86400), "Time that running jobs get to end at a stop")
    kill_timeout: float = _setting(10.0, _seconds(0, 3600), "Time that cancelled jobs get after that")
    finished_jobs: Literal["archive", "keep", "delete"] = _setting(
        "archive", _one_of("archive", "keep", "delete"), "Where finished jobs go"
    )

    notification_metrics_interval: float = _setting(
        60.0, _seconds(0.1, 86400), "Time between the lines of figures of a worker that runs notifications"
    )

    environment: str | None = _setting(None, _word, "Which [environments.NAME.schedules] of procjobs.toml hold")
    cron_timezone: str | None = _setting(None, _text, "Time zone of schedules that name none")
    enable_email_queue_job: bool | None = _setting(None, _switch, "Whether schedules of the group email_queue fire")
    enable_cleanup_jobs: bool | None = _setting(None, _switch, "Whether schedules of the group cleanup fire")
    enable_payment_reminders: bool | None = _setting(
        None, _switch, "Whether schedules of the group payment_reminders fire"
    )

    smtp_host: str | None = _setting(None, _host, "Mail server")
    smtp_port: int = _setting(25, _whole(1, 65535), "Port of the mail server")
    smtp_user: str | None = _setting(None, _text, "User at the mail server")
    smtp_password: str | None = _setting(None, _text, "Password at the mail server", secret=True)
    smtp_tls: Literal["none", "starttls", "tls"] = _setting(
        "none", _one_of("none", "starttls", "tls"), "Encryption to the mail server"
    )
    smtp_timeout: float = _setting(20.0, _seconds(0.1, 600), "Time the mail server gets for each answer")
    smtp_connections: int | None = _setting(
        None, _whole(1, 10_000), "Connections that a worker may have to the mail server; unset is as its concurrency"
    )
    mail_from: str = _setting("procjobs <procjobs@localhost>", _address, "Sender of mails")
    mail_reply_to: str | None = _setting(None, _address, "Where answers to mails go")

    twilio_account_sid: str | None = _setting(None, _token, "Account at Twilio, for SMS and WhatsApp")
    twilio_auth_token: str | None = _setting(None, _token, "Auth token of that account", secret=True)
    twilio_from: str | None = _setting(None, _text, "Sender of SMS: a number, a name or a messaging service")
    twilio_url: str = _setting("https://api.twilio.com", _url, "Address of Twilio's API")
    whatsapp_provider: Literal["twilio", "meta"] | None = _setting(
        None, _one_of("twilio", "meta"), "Who takes WhatsApp messages"
    )
    whatsapp_from: str | None = _setting(None, _text, "Sender of WhatsApp messages by Twilio")
    whatsapp_template: str | None = _setting(None, _text, "Template that WhatsApp messages are written in")
    whatsapp_language: str = _setting("en", _text, "Language of that template at Meta")
    meta_phone_number_id: str | None = _setting(None, _text, "Sender of WhatsApp messages by Meta")
    meta_access_token: str | None = _setting(None, _token, "Access token of Meta's Cloud API", secret=True)
    meta_url: str = _setting("https://graph.facebook.com/v24.0", _url, "Address of Meta's Cloud API")
    slack_token: str | None = _setting(None, _token, "Token of the Slack bot", secret=True)
    slack_webhooks: tuple[tuple[str, str], ...] | None = _setting(
        None, _named_urls, "Incoming webhooks of Slack by the address that each stands for", secret=True
    )
    slack_url: str = _setting("https://slack.com/api", _url, "Address of Slack's API")
    webhook_secret: tuple[str, ...] | None = _setting(None, _signing_keys, "Keys that sign webhooks", secret=True)
    apprise_targets: tuple[tuple[str, str], ...] | None = _setting(
        None, _named_urls, "URLs of apprise by the name that notifications use", secret=True
    )
    channel_timeout: float = _setting(20.0, _seconds(0.1, 600), "Time a provider gets for each step of a request")
    outgoing_ports: tuple[int, ...] = _setting((80, 443), _ports, "Ports that users' addresses may name")
    outgoing_allow: tuple[str, ...] | None = _setting(
        None, _hosts, "Hosts and networks that users' addresses may name though they are not public"
    )

    uploads_at: str | None = _setting(None, _uploads, "Where uploaded files are: a folder, or s3://bucket/prefix")
    uploads_keep: float = _setting(86400.0, _seconds(0, 31_536_000), "Files that no row refers to are kept for so long")
    uploads_endpoint: str | None = _setting(None, _url, "Address of an S3 that is not Amazon's")
    uploads_region: str = _setting("us-east-1", _text, "Region of the bucket")
    uploads_access_key: str | None = _setting(None, _text, "Access key of the bucket")
    uploads_secret_key: str | None = _setting(None, _text, "Secret key of the bucket", secret=True)

    brand_name: str = _setting("procjobs", _text, "Name in mails and on pages")
    brand_logo_url: str | None = _setting(None, _url, "Logo in mails")
    brand_color: str = _setting("#2f5fd0", _color, "Colour of buttons and links")

    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", _one_of("debug", "info", "warning", "error"), "Least level that is written"
    )
    log_format: Literal["text", "json"] = _setting("text", _one_of("text", "json"), "Form of the log")

    user_token: str | None = _setting(None, _text, "Token of an ordinary user of the web pages", secret=True)
    admin_token: str | None = _setting(None, _text, "Token of an administrator of the web pages", secret=True)

    def file_schedules(
        self, *, config: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> dict[str, dict[str, Any]]:
        """The schedules of procjobs.toml by name: [schedules.NAME] and, over that, those of `environment`.

        Times are texts. Raises SettingsError.
        """
        path, content = _read_file(config, os.environ if environ is None else environ)
        found = _schedules_of(path, content, self.environment)
        return {
            name: {word: value.isoformat() if isinstance(value, date) else value for word, value in words.items()}
            for name, words in found.items()
        }

    @property
    def url(self) -> str:
        """Where the web pages are, for links."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.base_url or f"http://{host}:{self.port}"

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens that are set."""
        return tuple(token for token in (self.user_token, self.admin_token) if token)

    def shown(self) -> dict[str, Any]:
        """Every setting by name, for people and logs: secrets that are set are masked."""
        return {
            item.name: _MASK if item.metadata["secret"] and getattr(self, item.name) else getattr(self, item.name)
            for item in fields(self)
        }

    def but(self, **changes: Any) -> Settings:
        """The same settings with some of them changed, checked as ever."""
        return _checked(replace(self), {name: (value, "a change") for name, value in changes.items()})

    @classmethod
    def load(cls, *, config: Path | None = None, environ: Mapping[str, str] | None = None, **flags: Any) -> Settings:
        """The settings that hold here.

        config:  a procjobs.toml; default: PROCJOBS_CONFIG, else the one in the present folder, if there is one.
        environ: default: os.environ.
        flags:   by field name; None means not given.

        Raises SettingsError that lists every problem: the field, its value, the mend.
        """
        found = os.environ if environ is None else environ
        given: dict[str, tuple[Any, str]] = {}
        given.update(_of_file(config, found))
        given.update(_of_environment(found))
        given.update(
            {name: (value, f"--{name.replace('_', '-')}") for name, value in flags.items() if value is not None}
        )
        return _checked(cls(), given)


#: Settings whose variable has a name without PROCJOBS_, too.
_ALSO = {
    "DATABASE_URL": "dsn",
    "CRON_TIMEZONE": "cron_timezone",
    "ENABLE_EMAIL_QUEUE_JOB": "enable_email_queue_job",
    "ENABLE_CLEANUP_JOBS": "enable_cleanup_jobs",
    "ENABLE_PAYMENT_REMINDERS": "enable_payment_reminders",
}
#: Tables of procjobs.toml that are no settings.
_SCHEDULES, _ENVIRONMENTS = "schedules", "environments"


def _by_name() -> dict[str, Field[Any]]:
    return {item.name: item for item in fields(Settings)}


def _of_file(config: Path | None, environ: Mapping[str, str]) -> Iterator[tuple[str, tuple[Any, str]]]:
    path, content = _read_file(config, environ)
    for name, value in _flat({key: content[key] for key in content if key not in (_SCHEDULES, _ENVIRONMENTS)}):
        if name in {"data", "host_sql"} and isinstance(value, str):
            value = path.parent / Path(value).expanduser()  # where the file lies, wherever one stands
        elif name == "uploads_at" and isinstance(value, str) and "://" not in value:
            value = str(path.parent / Path(value).expanduser())
        yield name, (value, str(path))


def _read_file(config: Path | None, environ: Mapping[str, str]) -> tuple[Path, dict[str, Any]]:
    """The file that holds here and what is in it; nothing without one."""
    named = config or (Path(environ["PROCJOBS_CONFIG"]) if environ.get("PROCJOBS_CONFIG") else None)
    path = named or Path(FILE)
    if named is None and not path.is_file():
        return path, {}
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}", hint="procjobs init writes one") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}", hint="procjobs init writes an example") from error


def _schedules_of(path: Path, content: Mapping[str, Any], environment: str | None) -> dict[str, dict[str, Any]]:
    """[schedules.NAME], and over that [environments.ENVIRONMENT.schedules.NAME]."""
    places = [("schedules", content.get(_SCHEDULES, {}))]
    if environment is not None:
        chosen = content.get(_ENVIRONMENTS, {}).get(environment, {})
        places.append((f"environments.{environment}.schedules", chosen.get(_SCHEDULES, {})))
    found: dict[str, dict[str, Any]] = {}
    for place, table in places:
        for name, words in table.items():
            if not isinstance(words, dict):
                raise SettingsError(
                    f"{place} in {path}: {name} is not a table",
                    hint=f'write [{place}.{name}] and below it cron = "..."',
                )
            found[name] = {**found.get(name, {}), **words}
    return found


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        key = f"{prefix}{name}".replace("-", "_")
        if isinstance(value, dict):
            yield from _flat(value, f"{key}_")
        else:
            yield key, value


def _of_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, tuple[Any, str]]]:
    for variable, name in _ALSO.items():
        if environ.get(variable):
            yield name, (environ[variable], variable)
    for name in _by_name():
        variable = f"PROCJOBS_{name.upper()}"
        if environ.get(variable):
            yield name, (environ[variable], variable)


def _checked(base: Settings, given: Mapping[str, tuple[Any, str]]) -> Settings:
    known = _by_name()
    problems: list[str] = []
    values: dict[str, Any] = {}
    for name, (value, source) in given.items():
        item = known.get(name)
        if item is None:
            near = difflib.get_close_matches(name, known, 1)
            problems.append(f"{name} ({source}) is not a setting" + (f"; did you mean {near[0]}?" if near else ""))
            continue
        try:
            values[name] = None if value is None and item.default is None else item.metadata["read"](value)
        except (ValueError, TypeError) as error:
            shown = _MASK if item.metadata["secret"] else repr(value)
            problems.append(f"{name} = {shown} ({source}): {error}")
    result = replace(base, **values)
    problems += _conflicts(result)
    if problems:
        raise SettingsError("; ".join(problems), hint="flags win over the environment, that over procjobs.toml")
    return result


def _conflicts(settings: Settings) -> list[str]:
    """What is wrong between fields."""
    problems = []
    if settings.lease < 2 * settings.heartbeat_interval:
        problems.append(
            f"lease = {settings.lease:g} is less than two heartbeat intervals of {settings.heartbeat_interval:g}:"
            " raise lease or lower heartbeat_interval"
        )
    if (settings.uploads_at or "").startswith("s3://") and not (
        settings.uploads_access_key and settings.uploads_secret_key
    ):
        problems.append("uploads_at is a bucket: set uploads_access_key and uploads_secret_key")
    if settings.smtp_password and not settings.smtp_user:
        problems.append("smtp_password is set without smtp_user: set both or neither")
    return problems
