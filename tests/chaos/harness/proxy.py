"""A TCP proxy before PostgreSQL that reads the protocol: pass, blackhole, reset, delay, lose a request or a reply.

Faults are aimed at connections by application name ("procjobs claim") and at statements by a part of their text.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import quote

__all__ = ["Loss", "Proxy"]


@dataclass
class Loss:
    """One message to lose: the first (skip: after how many) that holds `statement` on a connection named like `name`.

    what: reply (the server has done it), request (the server never hears of it), hold (the reply never comes, and
    nothing says so: the connection goes silent).
    """

    statement: str
    name: str = ""
    what: str = "reply"
    skip: int = 0
    happened: threading.Event = field(default_factory=threading.Event)
    taken: bool = False

    def strikes(self, name: str, statement: str) -> bool:
        if self.taken or self.name not in name or self.statement not in statement:
            return False
        self.skip -= 1
        self.taken = self.skip < 0
        return self.taken


@dataclass(eq=False)
class _Pair:
    client: StreamWriter
    server: StreamWriter
    name: str = ""
    statements: dict[bytes, str] = field(default_factory=dict)
    loss: Loss | None = None
    silent: bool = False

    def cut(self) -> None:
        _reset(self.client)
        _reset(self.server)


class Proxy:
    """`with Proxy("/run/pg/.s.PGSQL.5432") as proxy:` forwards `proxy.dsn(database)` to that socket."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.delay = 0.0
        self.losses: list[Loss] = []
        self._black: set[str] = set()
        self._pairs: set[_Pair] = set()
        self._open: set[StreamWriter] = set()
        self._served: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def dsn(self, database: str, user: str = "postgres") -> str:
        options = "sslmode=disable&gssencmode=disable"
        return f"postgresql://{user}@127.0.0.1:{self.port}/{quote(database)}?{options}"

    def lose(self, statement: str, *, name: str = "", what: str = "reply", skip: int = 0) -> Loss:
        """Lose a message; `.happened` is set when it was."""
        loss = Loss(statement, name, what, skip)
        self.losses.append(loss)
        return loss

    def blackhole(self, name: str = "") -> None:
        """From now on nothing passes on connections named like this, in either direction, and nothing says so."""
        self._black.add(name)

    def heal(self) -> None:
        """What was held passes now, as TCP sends again what was lost."""
        self._black.clear()

    def forsake(self, name: str = "") -> int:
        """The present connections named like this are silent for ever; new ones pass. How many these are."""
        found = [pair for pair in list(self._pairs) if name in pair.name]
        for pair in found:
            pair.silent = True
        return len(found)

    def reset(self, name: str = "") -> None:
        """Connections named like this are reset."""

        def cut() -> None:
            for pair in list(self._pairs):
                if name in pair.name:
                    pair.cut()

        self._loop.call_soon_threadsafe(cut)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._forward())

    async def _forward(self) -> None:
        with self._listener, suppress(OSError):  # when it is shut down
            while True:
                accepted, _ = await self._loop.sock_accept(self._listener)
                task = asyncio.create_task(self._serve(accepted))
                self._served.add(task)
                task.add_done_callback(self._served.discard)
        # None is cancelled: one that is still being set up would leave its sockets open. They end when they are cut.
        while self._served:
            for writer in self._open:
                _reset(writer)
            await asyncio.wait(self._served, timeout=0.05)

    async def _serve(self, accepted: socket.socket) -> None:
        reader, client = await asyncio.open_connection(sock=accepted)
        async with self._closing(client):
            size = await reader.readexactly(4)
            startup = await reader.readexactly(struct.unpack("!I", size)[0] - 4)
            words = startup[4:].split(b"\0")
            name = words[words.index(b"application_name") + 1].decode() if b"application_name" in words else ""
            await self._while_silent(_Pair(client, client, name))
            replies, server = await asyncio.open_unix_connection(self.path)
            async with self._closing(server):
                server.write(size + startup)
                await self._exchange(_Pair(client, server, name), reader, replies)

    async def _exchange(self, pair: _Pair, requests: StreamReader, replies: StreamReader) -> None:
        self._pairs.add(pair)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._requests(pair, requests))
                both.create_task(self._replies(pair, replies))
        except* (OSError, asyncio.IncompleteReadError):
            pass  # either side left, a message was lost, or the proxy ends
        finally:
            self._pairs.discard(pair)

    @asynccontextmanager
    async def _closing(self, writer: StreamWriter) -> AsyncIterator[None]:
        """Whatever happens in the block, this connection is reset and its socket closed at its end."""
        self._open.add(writer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                yield
        finally:
            _reset(writer)
            with suppress(OSError):
                await writer.wait_closed()
            self._open.discard(writer)

    def _is_black(self, name: str) -> bool:
        return any(part in name for part in self._black)

    async def _while_silent(self, pair: _Pair) -> None:
        while (pair.silent or self._is_black(pair.name)) and not pair.client.is_closing():  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # it is another thread that heals

    async def _pass(self, pair: _Pair, writer: StreamWriter, message: bytes) -> None:
        if self.delay:
            await asyncio.sleep(self.delay)
        await self._while_silent(pair)
        writer.write(message)
        await writer.drain()

    async def _requests(self, pair: _Pair, reader: StreamReader) -> None:
        while True:
            kind, body = await _message(reader)
            statement = _statement(pair, kind, body)
            for loss in self.losses if statement else ():
                if loss.strikes(pair.name, statement):
                    pair.loss = loss
            if pair.loss is not None and pair.loss.what == "request":
                pair.loss.happened.set()
                raise ConnectionError
            await self._pass(pair, pair.server, kind + struct.pack("!I", len(body) + 4) + body)

    async def _replies(self, pair: _Pair, reader: StreamReader) -> None:
        while True:
            kind, body = await _message(reader)
            if pair.loss is not None:
                if kind == b"Z":  # ReadyForQuery: the server has done and committed it
                    pair.loss.happened.set()
                    if pair.loss.what == "reply":
                        raise ConnectionError
                continue
            await self._pass(pair, pair.client, kind + struct.pack("!I", len(body) + 4) + body)


def _reset(writer: StreamWriter) -> None:
    """Close at once and, of TCP, with a RST."""
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.family != socket.AF_UNIX and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _message(reader: StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)


def _statement(pair: _Pair, kind: bytes, body: bytes) -> str:
    """The text of what is executed, at its Query or Bind message."""
    if kind == b"Q":
        return body.rstrip(b"\0").decode(errors="replace")
    if kind == b"P":
        name, text, _ = body.split(b"\0", 2)
        pair.statements[name] = text.decode(errors="replace")
    if kind == b"B":
        return pair.statements.get(body.split(b"\0", 2)[1], "")
    return ""
