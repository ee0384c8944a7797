"""Settings: one value from four places, checked once, told in words."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import procjobs
from procjobs.errors import SettingsError
from procjobs.settings import Settings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No procjobs.toml of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)


def load(environ: dict[str, str] | None = None, **flags: Any) -> Settings:
    return Settings.load(environ=environ or {}, **flags)


def toml(text: str, name: str = "procjobs.toml") -> Path:
    path = Path(name).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


class TestPlaces:
    def test_each_place_overrides_the_one_before(self) -> None:
        assert load().port == 8080
        toml("port = 1")
        assert load().port == 1
        assert load({"PROCJOBS_PORT": "2"}).port == 2
        assert load({"PROCJOBS_PORT": "2"}, port=3).port == 3

    def test_a_flag_of_none_was_not_given(self) -> None:
        assert load({"PROCJOBS_PORT": "2"}, port=None).port == 2

    def test_an_empty_variable_is_not_set(self) -> None:
        assert load({"PROCJOBS_PORT": "", "DATABASE_URL": ""}) == Settings()

    def test_the_database(self) -> None:
        assert load().dsn is None
        assert load({"DATABASE_URL": "postgresql:///a"}).dsn == "postgresql:///a"
        assert load({"DATABASE_URL": "postgresql:///a", "PROCJOBS_DSN": "postgresql:///b"}).dsn == "postgresql:///b"

    def test_tables_are_prefixes(self) -> None:
        toml('[smtp]\nhost = "mail"\nport = 587\n[brand]\nname = "Acme"\n')
        settings = load()
        assert (settings.smtp_host, settings.smtp_port, settings.brand_name) == ("mail", 587, "Acme")

    def test_paths_in_a_file_start_at_the_file(self, tmp_path: Path) -> None:
        path = toml('data = "var"\nhost_sql = "host.sql"\n', "conf/procjobs.toml")
        settings = load({"PROCJOBS_CONFIG": str(path)})
        assert settings.data == tmp_path / "conf" / "var"
        assert settings.host_sql == tmp_path / "conf" / "host.sql"
        assert load(config=path, data="here").data == Path("here")

    def test_every_field_can_be_set_in_the_environment(self) -> None:
        samples = {
            "dsn": "postgresql:///x",
            "listen_dsn": "postgresql:///y",
            "app": "a.b",
            "base_url": "https://x.example",
            "home_url": "https://y.example",
            "brand_logo_url": "https://x.example/logo.png",
            "brand_color": "#000000",
            "mail_from": "a@b.example",
            "mail_reply_to": "a@b.example",
            "finished_jobs": "keep",
            "smtp_tls": "tls",
            "smtp_connections": "4",
            "uploads_endpoint": "https://files.example.com",
            "smtp_user": "u",
            "log_level": "debug",
            "log_format": "json",
            "queues": "a,b",
            "lease": "61",
            "twilio_url": "https://twilio.example.com",
            "whatsapp_provider": "meta",
            "meta_url": "https://meta.example.com",
            "slack_url": "https://slack.example.com",
            "slack_webhooks": "#ops=https://hooks.example.com/1",
            "webhook_secret": "whsec_" + "QUFB" * 8,
            "apprise_targets": "oncall=json://push.example.com",
            "enable_email_queue_job": "true",
            "enable_cleanup_jobs": "true",
            "enable_payment_reminders": "true",
        }
        environ = {
            f"PROCJOBS_{field.name.upper()}": samples.get(field.name, "7" if field.default is not None else "some")
            for field in dataclasses.fields(Settings)
        }
        changed = load(environ)
        same = [f.name for f in dataclasses.fields(Settings) if getattr(changed, f.name) == getattr(Settings(), f.name)]
        assert same == []


class TestValues:
    @pytest.mark.parametrize(
        ("text", "seconds"), [("10", 10), ("1.5", 1.5), ("500ms", 0.5), ("2 min", 120), ("1h", 3600), ("30s", 30)]
    )
    def test_times(self, text: str, seconds: float) -> None:
        assert load({"PROCJOBS_KILL_TIMEOUT": text}).kill_timeout == seconds

    def test_queues(self) -> None:
        assert load().queues is None
        assert load({"PROCJOBS_QUEUES": "mail, reports"}).queues == ("mail", "reports")
        assert load(queues=["mail"]).queues == ("mail",)

    @pytest.mark.parametrize(
        ("text", "host"),
        [
            (" mail.example ", "mail.example"), ("mail_1", "mail_1"), ("localhost.", "localhost."),
            ("10.0.0.1", "10.0.0.1"), ("[2001:db8::1]", "2001:db8::1"), ("2001:db8::1", "2001:db8::1"),
            ("mäil.example", "mäil.example"),
        ],
    )  # fmt: skip
    def test_a_mail_server(self, text: str, host: str) -> None:
        assert load({"PROCJOBS_SMTP_HOST": text}).smtp_host == host

    def test_an_app_may_be_written_either_way(self) -> None:
        assert load(app="myapp.tasks:app").app == load(app="myapp.tasks.app").app == "myapp.tasks.app"

    def test_the_address_of_the_pages(self) -> None:
        assert load().url == "http://127.0.0.1:8080"
        assert load(host="::1", port=9000).url == "http://[::1]:9000"
        assert load(base_url="https://jobs.example.com/").url == "https://jobs.example.com"

    def test_changes_are_checked(self) -> None:
        assert Settings().but(port=9).port == 9
        with pytest.raises(SettingsError, match="port = 99999"):
            Settings().but(port=99999)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "not a number": ({"port": "http"}, r"port = 'http' \(--port\): write a whole number from 0 to 65535"),
    "out of range": ({"concurrency": 0}, r"concurrency = 0 \(--concurrency\): write a whole number from 1"),
    "a truth value": ({"port": True}, r"port = True"),
    "a time": ({"kill_timeout": "soon"}, r"kill_timeout = 'soon'.*500ms, 10s, 5min, 1h"),
    "a choice": ({"finished_jobs": "burn"}, r"write one of archive, keep, delete"),
    "an address": ({"mail_from": "nobody"}, r"write an address"),
    "an address of no domain": ({"mail_from": "Team <team@a..example>"}, r"write an address"),
    "an address of a label too long": ({"mail_from": f"team@{'x' * 64}.example"}, r"write an address"),
    "an address of a number": ({"mail_reply_to": "team@[127.0.0.1]"}, r"write an address"),
    "two addresses": ({"mail_from": "a@b.example, c@d.example"}, r"write an address"),
    "an address beyond ASCII": ({"mail_from": "jörg@b.example"}, r"write an address"),
    "a second header": ({"mail_from": "a@b.example\nbcc: x@y.example"}, r"leave out line breaks"),
    "a mail server that is a URL": ({"smtp_host": "smtp://mail.example"}, r"write the name of a host or its address"),
    "a mail server with its port": ({"smtp_host": "mail.example:25"}, r"without a port"),
    "a mail server of no name": ({"smtp_host": "mail..example"}, r"write the name of a host"),
    "a URL of no host": ({"twilio_url": "https://api..example"}, r"write a URL"),
    "a URL of a host with a space": ({"slack_url": "https://slack example/api"}, r"write a URL"),
    "a host of no name": ({"outgoing_allow": "https://hooks.internal"}, r"neither a host name nor a network"),
    "a network that is none": ({"outgoing_allow": "hooks.internal,10.0.0.0/99"}, r"'10.0.0.0/99' is neither"),
    "a token beyond ASCII": (
        {"slack_token": "xoxb\u20111"},
        r"slack_token = \*+ .*: write it as the provider shows it",
    ),
    "a token of two words": ({"meta_access_token": "Bearer EAAG"}, r"write it as the provider shows it"),
    "a colour": ({"brand_color": "red"}, r"#rrggbb"),
    "a URL": ({"base_url": "jobs.example.com"}, r"write a URL"),
    "an app": ({"app": "app"}, r"write the path of your App"),
    "an unknown name": ({"smtp_hots": "x"}, r"smtp_hots \(--smtp-hots\) is not a setting; did you mean smtp_host\?"),
    "an empty queue": ({"queues": ["a", ""]}, r"write names of at most 128 characters"),
    "a lease without beats": ({"lease": 5.0}, r"lease = 5 is less than two heartbeat intervals of 10"),
    "half a login": ({"smtp_password": "x"}, r"smtp_password is set without smtp_user"),
}


class TestRefusals:
    @pytest.mark.parametrize("case", REFUSED)
    def test_the_field_the_value_and_the_mend(self, case: str) -> None:
        flags, message = REFUSED[case]
        with pytest.raises(SettingsError, match=message):
            load(**flags)

    def test_all_at_once(self) -> None:
        toml('port = "x"\nnonsense = 1\n')
        with pytest.raises(SettingsError) as refused:
            load({"PROCJOBS_CONCURRENCY": "many"})
        assert str(refused.value).count(";") == 2
        assert "procjobs.toml" in str(refused.value)
        assert "PROCJOBS_CONCURRENCY" in str(refused.value)

    def test_a_file_that_is_not_toml(self) -> None:
        toml("port: 1")
        with pytest.raises(SettingsError, match=r"procjobs\.toml is not TOML"):
            load()

    def test_a_file_that_is_not_there(self) -> None:
        with pytest.raises(SettingsError, match=r"nowhere\.toml cannot be read"):
            load(config=Path("nowhere.toml"))


class TestSecrets:
    SECRETS = ("dsn", "listen_dsn", "smtp_password", "user_token", "admin_token")

    def test_they_are_not_shown(self) -> None:
        values = {name: "password=canary" if "dsn" in name else "canary" for name in self.SECRETS}
        settings = load({}, **values, smtp_user="me")
        assert all(getattr(settings, name) == value for name, value in values.items())
        assert "canary" not in repr(settings)
        assert "canary" not in str(settings.shown())

    def test_they_are_not_shown_in_a_refusal(self) -> None:
        with pytest.raises(SettingsError) as refused:
            load(admin_token="canary\n", dsn="postgres//me:canary@db", listen_dsn="canary")
        assert "canary" not in str(refused.value)
        assert str(refused.value).count("write a URL") == 2

    def test_the_tokens_that_are_set(self) -> None:
        assert load().tokens == ()
        assert load(user_token="u", admin_token="a").tokens == ("u", "a")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


def test_every_field_says_what_it_is_for() -> None:
    assert all(field.metadata["about"] for field in dataclasses.fields(Settings))


def test_the_template_of_init_names_every_setting() -> None:
    """Each of its lines, taken out of its comment, is a setting that is taken; none is left out but the tokens."""
    template = (Path(procjobs.__file__).parent / "templates" / "init" / "procjobs.toml").read_text()
    shown = re.sub(r"(?m)^# (?=\w+ = )", "", template)
    loaded = load(config=toml(shown))
    assert loaded.smtp_host == "smtp.example.com"
    content = tomllib.loads(shown)
    names = {name for name, value in content.items() if not isinstance(value, dict)}
    names |= {f"{table}_{name}" for table, value in content.items() if isinstance(value, dict) for name in value}
    assert {field.name for field in dataclasses.fields(Settings)} - names == {"user_token", "admin_token"}


class TestSchedules:
    def test_the_environment_has_short_names_too(self) -> None:
        settings = load(
            {"CRON_TIMEZONE": "Europe/Paris", "ENABLE_CLEANUP_JOBS": "false", "ENABLE_EMAIL_QUEUE_JOB": "1"}
        )
        assert settings.cron_timezone == "Europe/Paris"
        assert settings.enable_cleanup_jobs is False and settings.enable_email_queue_job is True
        assert settings.enable_payment_reminders is None
        assert load({"CRON_TIMEZONE": "a", "PROCJOBS_CRON_TIMEZONE": "b"}).cron_timezone == "b"
        with pytest.raises(SettingsError, match="write true or false"):
            load({"ENABLE_CLEANUP_JOBS": "perhaps"})

    def test_they_are_no_settings_and_an_environment_goes_over_the_others(self) -> None:
        toml(
            'port = 1\n[schedules.a]\ntask = "t"\ncron = "@daily"\nanchor = 2030-01-01T00:00:00Z\n'
            "[environments.staging.schedules.a]\nenabled = false\n[environments.staging.schedules.b]\nevery = 60\n"
        )
        a = {"task": "t", "cron": "@daily", "anchor": "2030-01-01T00:00:00+00:00"}
        assert load().port == 1
        assert load().file_schedules(environ={}) == {"a": a}
        staging = load({"PROCJOBS_ENVIRONMENT": "staging"})
        assert staging.file_schedules(environ={}) == {"a": {**a, "enabled": False}, "b": {"every": 60}}
        assert load(environment="other").file_schedules(environ={}) == {"a": a}

    def test_what_is_no_table_is_told_with_its_place(self) -> None:
        toml('[schedules]\na = "@daily"\n')
        with pytest.raises(SettingsError, match=r"schedules in .*procjobs\.toml: a is not a table"):
            load().file_schedules(environ={})
