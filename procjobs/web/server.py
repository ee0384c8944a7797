"""Listening and serving: the socket is opened before anything else, so that a taken port is told at once."""

from __future__ import annotations

import errno
import signal
import socket
import time
from typing import TYPE_CHECKING

from procjobs.errors import ServerError

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = ["address_of", "adopt", "listen", "serve"]


def listen(host: str, port: int, *, patience: float = 0.0) -> socket.socket:
    """A listening socket. Port 0 is any free one. Raises ServerError in one sentence.

    patience: seconds to wait for a taken port to become free, e.g. because its holder is just ending.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            return socket.create_server(address[:2], family=family, backlog=512)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            raise _refused(host, port, error) from error


def _refused(host: str, port: int, error: OSError) -> ServerError:
    if isinstance(error, socket.gaierror):
        return ServerError(f"the host {host} is not known", hint="choose an address of this machine with --host")
    if error.errno == errno.EADDRINUSE:
        return ServerError(
            f"port {port} on {host} is taken by another program", hint="stop it, or choose another with --port"
        )
    if error.errno == errno.EACCES:
        return ServerError(f"port {port} may not be opened by this user", hint="choose one above 1023 with --port")
    return ServerError(
        f"cannot listen on {host} port {port}: {error.strerror}", hint="choose others with --host, --port"
    )


def adopt(descriptor: int) -> socket.socket:
    """The listening socket that a parent process handed down."""
    return socket.socket(fileno=descriptor)


def address_of(listener: socket.socket) -> str:
    """The URL under which a listener answers."""
    host, port = listener.getsockname()[:2]
    named = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{named}:{port}"


def serve(app: Starlette, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; open requests get five seconds to end."""
    import uvicorn

    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal anew after its clean stop, which would end the process as if it had crashed.
        signal.signal(number, lambda *_: None)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=5, lifespan="on"
    )
    uvicorn.Server(config).run(sockets=[listener])
