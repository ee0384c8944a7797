"""Calls to addresses that users gave: only public hosts are reached, whatever a name, a redirect or the DNS says.

    client = guarded_client(Reach.of(settings), timeout=10)

A host is resolved once, every address that it has is judged, and the connection goes to an address that was judged:
an answer of the DNS that changes afterwards changes nothing. Host header, SNI and certificate stay the name's.
Redirects are not followed and no proxy of the environment is used, since it would resolve the name by itself.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, TypeAlias

import httpcore2
import httpx2
from httpcore2._backends.auto import AutoBackend

from procjobs.errors import SettingsError

if TYPE_CHECKING:
    from procjobs.settings import Settings

__all__ = ["AddressRefused", "Reach", "Resolver", "guarded_client", "is_public", "no_cookies"]

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
#: The addresses of a host and port, as text.
Resolver: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_UNICAST6 = ipaddress.ip_network("2000::/3")
#: Not for hosts, whatever version of Python says: protocol assignments, documentation, a relay, a cloud's metadata.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "2001::/23", "3fff::/20")
)


class AddressRefused(Exception):
    """The guard let no connection through; the text says why and names no address that the caller did not know."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also where an IPv6 address stands for an IPv4 one."""
    found = _ipv4_within(_parsed(address))
    if found is None or any(found in network for network in _NOT_PUBLIC):
        return False
    if found.version == 6 and found not in _UNICAST6:
        return False
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)


def _parsed(address: str) -> Address:
    return ipaddress.ip_address(address.partition("%")[0])


def _ipv4_within(address: Address) -> Address | None:
    """The IPv4 address that a mapped, NAT64 or 6to4 one leads to; None for Teredo, which may lead anywhere."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return ipaddress.IPv4Address(address.packed[-4:])
    if address.sixtofour is not None:
        return address.sixtofour
    return None if address.teredo is not None else address


@dataclass(frozen=True, slots=True)
class Reach:
    """What may be reached beside the public internet.

    ports:    the only ones that are connected to.
    hosts:    names whose addresses are not judged.
    networks: addresses that are allowed though they are not public.
    """

    ports: frozenset[int] = frozenset({80, 443})
    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> Reach:
        """The reach of `outgoing_ports` and `outgoing_allow`: host names, addresses and networks, mixed."""
        hosts, networks = set(), []
        for entry in settings.outgoing_allow or ():
            try:
                networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                if not re.fullmatch(r"[\w.-]+", entry):
                    raise SettingsError(f"outgoing_allow: {entry!r} is neither a host name nor a network") from None
                hosts.add(_name(entry))
        return cls(frozenset(settings.outgoing_ports), frozenset(hosts), tuple(networks))

    def allows(self, host: str, address: str) -> bool:
        """Whether this address of the host may be connected to."""
        if _name(host) in self.hosts or is_public(address):
            return True
        found = _parsed(address)
        inner = _ipv4_within(found)
        return any(found in network or (inner is not None and inner in network) for network in self.networks)


def _name(host: str) -> str:
    return host.rstrip(".").lower()


async def _resolve(host: str, port: int) -> Sequence[str]:
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


class _Guard(httpcore2.AsyncNetworkBackend):
    """Where every connection is made: the host is judged here, and the judged address is connected to."""

    def __init__(self, reach: Reach, resolve: Resolver) -> None:
        self._reach = reach
        self._resolve = resolve
        self._backend = AutoBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        failed: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in await self._judged(host, port, timeout):
            try:
                return await self._backend.connect_tcp(
                    address, port, timeout=timeout, local_address=local_address, socket_options=socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failed = error
        raise failed

    async def _judged(self, host: str, port: int, timeout: float | None) -> Sequence[str]:
        if port not in self._reach.ports:
            raise AddressRefused(f"port {port} is not one of outgoing_ports")
        try:
            addresses = await asyncio.wait_for(self._resolve(host, port), timeout)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(f"{host} could not be looked up in time") from error
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"{host} could not be looked up") from error
        # One that is refused spoils them all: nobody with honest intentions mixes them.
        if not all(self._reach.allows(host, address) for address in addresses):
            raise AddressRefused(f"{host} is not on the public internet, nor in outgoing_allow")
        return addresses

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        raise AddressRefused("sockets of this machine are not reached")

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


class _GuardedTransport(httpx2.AsyncHTTPTransport):
    def __init__(self, guard: _Guard, **options: Any) -> None:
        super().__init__(trust_env=False, **options)
        if not hasattr(self._pool, "_network_backend"):  # httpx2 is pinned for this
            raise SettingsError(f"httpx2 {httpx2.__version__} cannot be guarded", hint="install 'procjobs[channels]'")
        self._pool._network_backend = guard


def no_cookies() -> CookieJar:
    """A jar that takes nothing: whoever is called cannot make a client carry things about."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=()))


def guarded_client(
    reach: Reach,
    *,
    timeout: float,
    resolve: Resolver = _resolve,
    limits: httpx2.Limits | None = None,
    verify: ssl.SSLContext | None = None,
) -> httpx2.AsyncClient:
    """A client that connects to nothing but what `reach` allows; it raises AddressRefused for anything else.

    timeout: seconds for each of looking up and connecting, sending, receiving. verify: whom to trust, if not whom
    SSL_CERT_FILE and SSL_CERT_DIR say, or else the public authorities.
    """
    transport = _GuardedTransport(
        _Guard(reach, resolve),
        verify=verify or httpx2.create_ssl_context(),
        limits=limits or httpx2.Limits(max_connections=20, keepalive_expiry=15),
    )
    return httpx2.AsyncClient(
        transport=transport, timeout=timeout, cookies=no_cookies(), follow_redirects=False, trust_env=False
    )
