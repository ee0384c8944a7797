"""Files that no row refers to: in a folder and in a bucket, by whose rows, and never by mistake."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from procjobs import demo
from procjobs.app import default_app
from procjobs.db import Database
from procjobs.errors import HostBindingMissing, SettingsError
from procjobs.packs.retention import remove_orphans, vacuum
from procjobs.settings import Settings
from procjobs.storage import Bucket, Folder, StorageError, StoredFile, signed, storage_of
from tests.conftest import Sql

DAY = timedelta(days=1)


def write(folder: Path, *keys: str, days: float = 3) -> None:
    """Files that were written some days ago."""
    at = datetime.now(UTC).timestamp() - days * 86400
    for key in keys:
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(key)
        os.utime(path, (at, at))


def there(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# -- the folder ----------------------------------------------------------------------------------------------------


async def test_files_without_a_row_go_and_young_ones_stay(db: Database, sql: Sql, tmp_path: Path) -> None:
    await demo.seed(db)
    write(tmp_path, "2031/lake/jetty.jpg", "2031/lake/lost.jpg", "a b/ümlaut & more.jpg")
    write(tmp_path, "2031/lake/new.jpg", days=0.5)
    write(tmp_path, ".hidden", ".git/config")
    assert await remove_orphans(db, Folder(tmp_path), keep=DAY) == 2
    assert there(tmp_path) == {"2031/lake/jetty.jpg", "2031/lake/new.jpg", ".hidden", ".git/config"}
    assert await remove_orphans(db, Folder(tmp_path), keep=DAY) == 0


async def test_links_are_neither_followed_nor_removed(db: Database, sql: Sql, tmp_path: Path) -> None:
    await demo.seed(db)
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    write(outside, "secret.txt")
    inside.mkdir()
    (inside / "folder").symlink_to(outside)
    (inside / "file").symlink_to(outside / "secret.txt")
    assert await remove_orphans(db, Folder(inside), keep=timedelta(0)) == 0
    assert there(outside) == {"secret.txt"}


async def test_more_than_a_page(db: Database, sql: Sql, tmp_path: Path) -> None:
    await demo.seed(db)
    write(tmp_path, *(f"{n % 7}/{n}" for n in range(2345)))
    assert [len(page) for page in Folder(tmp_path).pages()] == [1000, 1000, 345]
    assert await remove_orphans(db, Folder(tmp_path), keep=DAY) == 2345


def test_a_file_that_was_written_again_since_is_left(tmp_path: Path) -> None:
    write(tmp_path, "a")
    ((file,),) = Folder(tmp_path).pages()
    write(tmp_path, "a", days=0)
    assert Folder(tmp_path).remove(file) is False
    assert Folder(tmp_path).remove(StoredFile("gone", file.at)) is False
    assert there(tmp_path) == {"a"}


async def test_a_binding_that_is_missing_or_empty_costs_no_file(db: Database, sql: Sql, tmp_path: Path) -> None:
    write(tmp_path, "a")
    with pytest.raises(HostBindingMissing, match="names no file at all"):  # the demonstration is not seeded
        await remove_orphans(db, Folder(tmp_path), keep=DAY)
    sql("drop view procjobs.host_uploads")
    with pytest.raises(HostBindingMissing, match="host_uploads missing"):
        await remove_orphans(db, Folder(tmp_path), keep=DAY)
    assert there(tmp_path) == {"a"}


async def test_a_folder_that_is_not_there_is_said(db: Database, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no folder"):
        await remove_orphans(db, Folder(tmp_path / "nowhere"), keep=DAY)


async def test_the_task_deletes_rows_first_and_then_their_files(
    db: Database, dsn: str, sql: Sql, tmp_path: Path
) -> None:
    await demo.seed(db)
    write(tmp_path, "2031/lake/jetty.jpg", "2031/lake/blurred.jpg", "2031/lake/draft.jpg")
    app = default_app(Settings(dsn=dsn, uploads_at=str(tmp_path)))
    async with app.open_async():
        await app.register_tasks()
        job = await app.configure_task("procjobs.cleanup_orphaned_uploads").defer_async()
        await app.run_worker_async(wait=False, install_signal_handlers=False)
    assert sql.one("select procjobs.job_result(%s)", job) == 2  # a row, and its file
    assert there(tmp_path) == {"2031/lake/jetty.jpg", "2031/lake/draft.jpg"}


# -- the bucket ----------------------------------------------------------------------------------------------------

KEYS = {"access_key": "AKIAIOSFODNN7EXAMPLE", "secret_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}


def test_signatures_are_those_of_the_reference() -> None:
    """The examples in "Authenticating Requests: Using the Authorization Header", with their keys and dates."""
    at = datetime(2013, 5, 24, tzinfo=UTC)
    host = "https://examplebucket.s3.amazonaws.com"

    def signature(url: str, **headers: str) -> str:
        found = signed("GET", url, at=at, region="us-east-1", headers=headers, **KEYS)
        return found["Authorization"].rpartition("Signature=")[2]

    assert signature(f"{host}/test.txt", range="bytes=0-9") == (
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )
    assert signature(f"{host}/?max-keys=2&prefix=J") == (
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    )


@dataclass
class Store:
    """A bucket behind HTTP: lists two keys at a time, deletes, and refuses what is not signed."""

    files: dict[str, datetime] = field(default_factory=dict)
    port: int = 0

    def answer(self, method: str, target: str, headers: Any) -> tuple[int, str]:
        wanted = signed(
            method, f"http://127.0.0.1:{self.port}{target}",
            at=datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC), region="here", **KEYS,  # type: ignore[arg-type]
        )  # fmt: skip
        if headers["Authorization"] != wanted["Authorization"]:
            return 403, "<Error><Code>SignatureDoesNotMatch</Code></Error>"
        parts = urlsplit(target)
        _, bucket, key = unquote(parts.path).split("/", 2)
        assert bucket == "photos"
        if method == "DELETE":
            self.files.pop(key, None)
            return 204, ""
        asked = {name: value for name, (value,) in parse_qs(parts.query, keep_blank_values=True).items()}
        begin = asked.get("continuation-token", "")
        keys = sorted(key for key in self.files if key.startswith(asked["prefix"]) and key > begin)
        listed = "".join(
            f"<Contents><Key>{escape(key.replace('%', '%25').replace('+', '%2B').replace(' ', '+'))}</Key>"
            f"<LastModified>{self.files[key]:%Y-%m-%dT%H:%M:%S.000Z}</LastModified></Contents>"
            for key in keys[:2]
        )
        more = f"<NextContinuationToken>{escape(keys[1])}</NextContinuationToken>" if len(keys) > 2 else ""
        return 200, (
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{more}{listed}</ListBucketResult>"
        )


@pytest.fixture
def store() -> Iterator[Store]:
    found = Store()

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            code, body = found.answer(self.command, self.path, self.headers)
            self.send_response(code)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_DELETE = respond  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def settings(store: Store, **more: Any) -> Settings:
    return Settings.load(
        environ={}, uploads_at="s3://photos/up/",
        uploads_region="here", uploads_endpoint=f"http://127.0.0.1:{store.port}",
        uploads_access_key=KEYS["access_key"], uploads_secret_key=KEYS["secret_key"], **more,
    )  # fmt: skip


async def test_a_bucket_is_cleaned_as_a_folder_is(db: Database, sql: Sql, store: Store) -> None:
    await demo.seed(db)
    old, new = datetime.now(UTC) - timedelta(days=3), datetime.now(UTC)
    store.files = {
        "up/2031/lake/jetty.jpg": old, "up/a b+c%&.jpg": old, "up/lost": old, "up/x/y": old, "up/new": new,
        "elsewhere": old,
    }  # fmt: skip
    storage = storage_of(settings(store))
    assert isinstance(storage, Bucket)
    assert await remove_orphans(db, storage, keep=DAY) == 3
    assert set(store.files) == {"up/2031/lake/jetty.jpg", "up/new", "elsewhere"}


async def test_a_bucket_that_refuses_or_is_away_is_said_with_what_it_said(db: Database, store: Store) -> None:
    wrong = storage_of(settings(store, uploads_keep=5).but(uploads_secret_key="wrong"))
    assert wrong is not None
    with pytest.raises(StorageError, match=r"answered with 403: .*SignatureDoesNotMatch"):
        await remove_orphans(db, wrong, keep=DAY)
    away = storage_of(settings(store).but(uploads_endpoint="http://127.0.0.1:9"))
    assert away is not None
    with pytest.raises(StorageError, match="cannot be reached"):
        await remove_orphans(db, away, keep=DAY)


def test_settings_of_uploads_are_checked() -> None:
    assert storage_of(Settings()) is None
    for wrong in ("ftp://x/y", "s3://", "s3://UPPER"):
        with pytest.raises(SettingsError, match="s3://bucket"):
            Settings.load(environ={}, uploads_at=wrong)
    with pytest.raises(SettingsError, match="uploads_secret_key"):
        Settings.load(environ={}, uploads_at="s3://photos")


# -- space ---------------------------------------------------------------------------------------------------------


async def test_a_table_from_which_much_went_is_vacuumed_by_a_job(dsn: str, sql: Sql) -> None:
    sql("create table public.notes (id int, at timestamptz)")
    sql("create index on notes (at)")
    sql("insert into notes select n, '2020-01-01' from generate_series(1, 20000) n")
    sql("select procjobs.set_table_policy('old_notes', 'notes', 'at', '1 day')")
    app = default_app(Settings(dsn=dsn))
    async with app.open_async():
        await app.register_tasks()
        sql("call procjobs.work_retention('old_notes')")
        assert sql("select table_name from procjobs.tables_to_vacuum()") == [("public.notes",)]
        await app.run_worker_async(wait=False, install_signal_handlers=False)
        assert sql("select * from procjobs.tables_to_vacuum()") == []
        assert sql.one("select vacuumed_at is not null from procjobs.table_retention_runs")
        assert sql.one("select pg_relation_size('notes')") == 0
        assert await vacuum(await app.database()) == 0


async def test_a_table_that_postgresql_passes_over_is_still_to_be_vacuumed(
    db: Database, sql: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    sql("create table public.notes (id int, at timestamptz)")
    sql("insert into notes select n, '2020-01-01' from generate_series(1, 20000) n")
    sql("select procjobs.set_table_policy('old_notes', 'notes', 'at', '1 day')")
    sql("call procjobs.work_retention('old_notes')")
    with sql.connection.transaction():
        sql("lock table notes in share mode")
        assert await vacuum(db, "old_notes") == 0
    assert "public.notes was not vacuumed" in caplog.text
    assert await vacuum(db, "another") == 0
    assert await vacuum(db, "old_notes") == 1
