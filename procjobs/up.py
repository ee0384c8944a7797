"""`procjobs up`: everything on this machine in one command, and nothing left behind when it ends.

    this process        PostgreSQL (embedded, unless a DSN is given), mail catcher, supervision
      +-- worker        runs jobs; all mail goes to the mail catcher
      +-- scheduler     keeps time, also while every worker is busy
      +-- web           pages on a socket that this process opened, so that a restart loses no request

What can go wrong is looked for in the order in which it costs least: folder, other `up`, port, server, schema.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from procjobs import migrate as migrations
from procjobs.db import Transaction, connect
from procjobs.embedded import EmbeddedPostgres
from procjobs.errors import HostBindingMissing, ServerError
from procjobs.facts import Facts, Tokens, mailbox_of, remove_facts, tokens_of, write_facts
from procjobs.mailcatcher import Mailbox, MailCatcher
from procjobs.screen import screen
from procjobs.settings import Settings
from procjobs.supervisor import Child
from procjobs.watch import is_alive
from procjobs.web.server import address_of, listen

__all__ = ["run"]

logger = logging.getLogger(__name__)

#: The database in the embedded server.
DATABASE = "procjobs"
#: After a kill -9 the children of the last `up` need a moment to let go of its port.
PATIENCE = 3.0
#: Until the worker and the web pages answer.
PATIENCE_WITH_CHILDREN = 60.0
#: A child that ends this often before that will not come up.
TRIES = 3

_PROCJOBS = (sys.executable, "-m", "procjobs")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Place:
    """What is fixed before anything runs."""

    settings: Settings
    data: Path
    dsn: str
    server: EmbeddedPostgres | None
    listener: socket.socket
    tokens: Tokens
    since: float

    @property
    def url(self) -> str:
        return self.settings.base_url or address_of(self.listener)


def run(settings: Settings, *, demo: bool = True) -> int:
    """Start everything, wait for a signal, stop everything; returns the exit code.

    demo: seed the demonstration's organization, unless host.sql binds an application's own tables.
    Raises ServerError, MigrationError, DatabaseUnavailable in one sentence when it cannot start.
    """
    since = time.monotonic()
    data = Path(os.path.abspath(settings.data))
    with _signals_interrupt(), contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(data))
            killed = remove_facts(data)
            stack.callback(remove_facts, data)
            listener = stack.enter_context(listen(settings.host, settings.port, patience=PATIENCE if killed else 0.0))
            server = None if settings.dsn else _embedded(stack, data)
            dsn = server.create_database(DATABASE) if server else str(settings.dsn)
            report = migrations.migrate(dsn, host_sql=settings.host_sql)
            for note in report.notes:
                _say(f"note: {note}")
            place = Place(settings, data, dsn, server, listener, _tokens(settings, data), since)
            asyncio.run(_serve(place, demo=demo))
        except KeyboardInterrupt:
            pass
    return 0


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind like Ctrl-C while there is no event loop to tell."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _locked(data: Path) -> Iterator[None]:
    """The data folder, made if need be, for this process alone. The kernel gives it back however we end."""
    path = data / "up.lock"
    try:
        data.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ServerError(
            f"the data folder {data} cannot be written: {error.strerror}", hint="choose another with --data"
        ) from error
    with os.fdopen(descriptor, "r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ServerError(
                f"another `procjobs up` (process {lock.read().strip() or '?'}) runs over the data folder {data}",
                hint="stop it, or choose another folder with --data and another --port",
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _embedded(stack: contextlib.ExitStack, data: Path) -> EmbeddedPostgres:
    """Start the embedded PostgreSQL."""
    if not (data / "postgres" / "PG_VERSION").exists():
        _say(f"making a PostgreSQL in {data / 'postgres'} ...")
    return stack.enter_context(EmbeddedPostgres(data / "postgres"))


def _tokens(settings: Settings, data: Path) -> Tokens:
    kept = tokens_of(data)
    return Tokens(user=settings.user_token or kept.user, admin=settings.admin_token or kept.admin)


async def _serve(place: Place, *, demo: bool) -> None:
    """Everything that has a life of its own, until the first signal."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)
    catcher = MailCatcher(Mailbox(mailbox_of(place.data)))
    async with contextlib.AsyncExitStack() as stack:
        await catcher.start()
        stack.push_async_callback(catcher.stop)
        workers, others = _workers(place, catcher), [*_schedulers(place), _web(place)]
        for child in (*workers, *others):
            await child.start()
            stack.push_async_callback(child.stop)
        lives = [stop.wait(), _open_for_business(place, catcher, workers, others, demo=demo)]
        if place.server is not None:
            lives.append(_keep(place.server))
        try:
            await _first_of(*lives)
        finally:
            remove_facts(place.data)
            for number in _SIGNALS:  # from now on a signal says: do not wait for running jobs
                loop.add_signal_handler(number, _hasten, workers)
        _say("\nstopping; once more to stop without waiting for running jobs")


def _hasten(workers: list[Child]) -> None:
    for worker in workers:
        worker.signal(signal.SIGTERM)


async def _first_of(*lives: Coroutine[Any, Any, object]) -> None:
    """Run them side by side until one ends or fails, then end the others."""
    tasks = [asyncio.ensure_future(life) for life in lives]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _open_for_business(
    place: Place, catcher: MailCatcher, workers: list[Child], others: list[Child], *, demo: bool
) -> None:
    """Seed, wait until everybody answers, tell the world; then stay."""
    facts = Facts(
        dsn=place.dsn,
        url=place.url,
        mailbox=str(mailbox_of(place.data)),
        demo=await _seed(place.dsn) if demo else None,
        tokens=place.tokens,
    )
    await _everybody_answers(place, workers, others)
    write_facts(place.data, facts)
    host, port = catcher.address
    screen(
        facts,
        data=place.data,
        smtp=f"{host}:{port}",
        seconds=time.monotonic() - place.since,
        own_server=place.server is None,
    )
    await asyncio.Event().wait()


def _workers(place: Place, catcher: MailCatcher) -> list[Child]:
    """The worker with procjobs' own tasks, and one for the configured app."""
    settings = place.settings
    host, port = catcher.address
    env = {
        **_environment(place),
        "PROCJOBS_SMTP_HOST": host,
        "PROCJOBS_SMTP_PORT": str(port),
        "PROCJOBS_SMTP_TLS": "none",
    }
    return [
        Child(
            name,
            [*_PROCJOBS, "worker", "--name", _known_as(name), *apps],
            env=env,
            grace=settings.shutdown_timeout + settings.kill_timeout + 5.0,
        )
        for name, apps in _apps(settings, "worker").items()
    ]


def _schedulers(place: Place) -> list[Child]:
    """The scheduler of procjobs' own tasks, and one for the configured app."""
    return [
        Child(name, [*_PROCJOBS, "scheduler", *apps], env=_environment(place))
        for name, apps in _apps(place.settings, "scheduler").items()
    ]


def _apps(settings: Settings, service: str) -> dict[str, list[str]]:
    """The children that one service needs, by name: the options that choose their app."""
    named = {service: ["--builtin"]}
    if settings.app is not None:
        named[f"app {service}"] = ["--app", settings.app]
    return named


def _web(place: Place) -> Child:
    """The web pages, on the socket that is open already."""
    descriptor = place.listener.fileno()
    command = [*_PROCJOBS, "web", "--listener", str(descriptor), "--mailbox", str(mailbox_of(place.data))]
    return Child("web", command, env=_environment(place), pass_fds=[descriptor])


def _environment(place: Place) -> dict[str, str]:
    """What every child needs to know; in the environment, since arguments are for every user to read."""
    settings = place.settings
    return {
        **os.environ,
        "PROCJOBS_DSN": place.dsn,
        "PROCJOBS_DATA": str(place.data),
        "PROCJOBS_HOST": settings.host,
        "PROCJOBS_BASE_URL": place.url,
        "PROCJOBS_USER_TOKEN": place.tokens.user,
        "PROCJOBS_ADMIN_TOKEN": place.tokens.admin,
        "PROCJOBS_LOG_LEVEL": settings.log_level,
        "PROCJOBS_LOG_FORMAT": settings.log_format,
    }


def _known_as(child: str) -> str:
    """The name under which a worker of this `up`, and of no earlier one, registers."""
    return f"{child.replace(' ', '-')}-of-up-{os.getpid()}"


async def _keep(server: EmbeddedPostgres) -> None:
    """Start the embedded PostgreSQL again when it ends by itself. Raises ServerError when that does not help."""
    dsn = server.dsn()
    while True:
        await asyncio.sleep(0.5)
        if server.pid is not None:
            continue
        logger.error("PostgreSQL ended by itself and is started again; its log is %s", server.log)
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        if server.dsn() != dsn:
            raise ServerError("PostgreSQL came back under another address", hint="start `procjobs up` again")


async def _seed(dsn: str) -> dict[str, str] | None:
    from procjobs import demo

    connection = await connect(dsn)
    try:
        found = await demo.seed(Transaction(connection))
    except HostBindingMissing:
        return None  # host.sql binds an application's own tables: there is nothing to demonstrate
    finally:
        await connection.close()
    return {name: str(value) for name, value in asdict(found).items()}


async def _everybody_answers(place: Place, workers: list[Child], others: list[Child]) -> None:
    """Return once the web pages answer and the workers have registered. Raises ServerError when they do not."""
    try:
        async with asyncio.timeout(PATIENCE_WITH_CHILDREN):
            await _until(lambda: _web_answers(place.listener), others)
            connection = await connect(place.dsn)
            try:
                await _until(lambda: _registered(Transaction(connection), workers), [*workers, *others])
            finally:
                await connection.close()
    except TimeoutError as error:
        raise ServerError(
            f"the worker or the web pages did not answer within {PATIENCE_WITH_CHILDREN:g} s",
            hint="the lines above say why",
        ) from error


async def _until(condition: Callable[[], Awaitable[bool]], children: Iterable[Child]) -> None:
    while not await condition():
        for child in children:
            if child.failures >= TRIES:
                raise ServerError(f"the {child.name} ends as soon as it is started", hint="the lines above say why")
        await asyncio.sleep(0.05)


async def _registered(calls: Transaction, workers: list[Child]) -> bool:
    alive = {worker["name"] for worker in await calls.rows("list_workers") if is_alive(worker)}
    return alive.issuperset(_known_as(child.name) for child in workers)


async def _web_answers(listener: socket.socket) -> bool:
    """Whether the child serves; the socket itself takes connections already."""
    host, port = listener.getsockname()[:2]
    reach = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    reader, writer = await asyncio.open_connection(reach, port)
    try:
        writer.write(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        await writer.drain()
        return b" 200 " in await asyncio.wait_for(reader.readline(), 1.0)
    except (ConnectionError, TimeoutError):
        return False
    finally:
        writer.close()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
