"""Databases for the rounds: a template for each schema and shape, a clone of it for each round."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from procjobs.embedded import EmbeddedPostgres
from procjobs.errors import translate

__all__ = ["Databases", "server"]

#: As a production server would be: durable, with room in memory; no checkpoint in the middle of a round.
_SERVER = {"shared_buffers": "1GB", "max_wal_size": "8GB", "checkpoint_timeout": "30min", "max_connections": "200"}
_NAME = "procjobs_bench"


@contextmanager
def server(dsn: str | None, bindir: Path | None = None) -> Iterator[str]:
    """The given server, or an embedded one for as long as this lasts. Raises DatabaseError where it does not answer."""
    if dsn is not None:
        try:
            psycopg.connect(dsn, connect_timeout=10).close()
        except psycopg.Error as error:
            raise translate(error) from error
        yield dsn
        return
    with tempfile.TemporaryDirectory(prefix="procjobs-bench-") as folder:
        Path(folder).chmod(0o711)
        with EmbeddedPostgres(Path(folder) / "pg", bindir=bindir, server_settings=_SERVER) as running:
            # A name of a host that nobody asks for, beside the socket: some drivers refuse a URL without one.
            yield running.dsn().replace("@/", "@localhost/")


class Databases:
    """Databases of one server whose user may create others; all of them are gone when it closes."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._made: list[str] = []

    def template(self, name: str, fill: Callable[[str], None]) -> str:
        """The name of the template, filled by `fill(dsn)` when it is asked for the first time."""
        full = f"{_NAME}_{name}"
        if full not in self._made:
            self._create(full, "template0")
            fill(self._at(full))
            with psycopg.connect(self._at(full), autocommit=True) as connection:
                connection.execute("vacuum analyze")
        return full

    @contextmanager
    def clone(self, template: str) -> Iterator[str]:
        """A copy of the template, dropped afterwards; its DSN."""
        self._create(_NAME, template)
        try:
            yield self._at(_NAME)
        finally:
            self._drop(_NAME)

    def close(self) -> None:
        for name in list(self._made):
            self._drop(name)

    def _at(self, name: str) -> str:
        head, _, query = self._dsn.partition("?")
        if "://" in head:
            return f"{head.rsplit('/', 1)[0]}/{name}" + (f"?{query}" if query else "")
        return psycopg.conninfo.make_conninfo(self._dsn, dbname=name)

    def _create(self, name: str, template: str) -> None:
        self._drop(name)
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            query = sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template))
            if connection.info.server_version >= 150000:
                query += sql.SQL(" strategy file_copy")
            connection.execute(query)
        self._made.append(name)

    def _drop(self, name: str) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
        if name in self._made:
            self._made.remove(name)
