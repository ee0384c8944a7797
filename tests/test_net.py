"""The guard: nothing but the public internet is reached, whatever names, redirects and the DNS say."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx2
import pytest

from procjobs.errors import SettingsError
from procjobs.net import AddressRefused, Reach, guarded_client, is_public
from procjobs.settings import Settings

PRIVATE = """
    127.0.0.1 127.8.8.8 0.0.0.0 0.1.2.3 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 169.254.0.1
    100.64.0.1 100.100.100.200 192.0.0.192 192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.1.1.1
    240.0.0.1 255.255.255.255 168.63.129.16 192.88.99.1 :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1
    ::ffff:169.254.169.254 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::a00:1 2002:7f00:1:: 2002:a00:1::
    2001:0:4136:e378:8000:63bf:3fff:fdd2 fe80::1 fe80::1%eth0 fc00::1 fd00:ec2::254 fec0::1 ff02::1 2001:db8::1
    100::1
""".split()  # noqa: SIM905
PUBLIC = """
    8.8.8.8 1.1.1.1 93.184.216.34 2606:4700:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::1
""".split()  # noqa: SIM905


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_that_is_public(address: str) -> None:
    assert is_public(address)


class Origin:
    """A server on 127.0.0.1 that answers every request with the Host that it was asked for."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.hosts: list[str] = []
        self._tls = tls

    async def __aenter__(self) -> Origin:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.hosts += [line[6:] for line in head.split("\r\n") if line.lower().startswith("host: ")]
        writer.write(
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        await writer.drain()
        writer.close()


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with Origin() as running:
        yield running


class Dns:
    """Answers in turn, and the last one from then on."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


async def get(url: str, reach: Reach, dns: Dns | None = None, verify: ssl.SSLContext | None = None) -> httpx2.Response:
    options = {"resolve": dns} if dns is not None else {}
    async with guarded_client(reach, timeout=2, verify=verify, **options) as client:  # type: ignore[arg-type]
        return await client.get(url)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0", "127.1"]
)
async def test_this_machine_is_not_reached_however_it_is_written(origin: Origin, host: str) -> None:
    with pytest.raises((AddressRefused, httpx2.ConnectError, httpx2.InvalidURL)):
        await get(f"http://{host}:{origin.port}/", Reach(ports=frozenset({origin.port})))
    assert origin.hosts == []


async def test_every_address_of_a_name_must_be_public(origin: Origin) -> None:
    dns = Dns(["93.184.216.34", "10.0.0.1"])
    with pytest.raises(AddressRefused, match=r"mixed\.example"):
        await get(f"http://mixed.example:{origin.port}/", Reach(ports=frozenset({origin.port})), dns)
    assert dns.asked == 1


async def test_an_answer_that_changes_is_not_asked_for_twice(origin: Origin) -> None:
    """DNS rebinding: judged as allowed first, and somewhere else when it is connected to."""
    reach = Reach(ports=frozenset({origin.port}), networks=(ipaddress.ip_network("127.0.0.1/32"),))
    dns = Dns(["127.0.0.1"], ["127.0.0.2"])
    answer = await get(f"http://rebind.example:{origin.port}/", reach, dns)
    assert (answer.status_code, dns.asked, origin.hosts) == (302, 1, [f"rebind.example:{origin.port}"])
    with pytest.raises(AddressRefused):  # a new connection is judged anew
        await get(f"http://rebind.example:{origin.port}/", reach, dns)
    assert len(origin.hosts) == 1


async def test_redirects_are_not_followed(origin: Origin) -> None:
    reach = Reach(ports=frozenset({origin.port, 1}), hosts=frozenset({"there.example"}))
    assert (await get(f"http://there.example:{origin.port}/", reach, Dns(["127.0.0.1"]))).status_code == 302


async def test_ports_are_the_webs_unless_others_are_allowed(origin: Origin) -> None:
    with pytest.raises(AddressRefused, match="outgoing_ports"):
        await get(f"http://public.example:{origin.port}/", Reach(), Dns(["93.184.216.34"]))
    for port in (22, 25, 5432, 6379):
        with pytest.raises(AddressRefused, match="outgoing_ports"):
            await get(f"http://public.example:{port}/", Reach(), Dns(["93.184.216.34"]))


async def test_what_the_operator_allows_is_reached(origin: Origin) -> None:
    environ = {
        "PROCJOBS_OUTGOING_PORTS": f"80,{origin.port}",
        "PROCJOBS_OUTGOING_ALLOW": "Intranet.example,127.0.0.0/30",
    }
    reach = Reach.of(Settings.load(environ=environ))
    for host, address in (("127.0.0.1", "127.0.0.1"), ("intranet.example", "127.0.0.9")):
        assert reach.allows(host, address)
    assert reach.allows("x.example", "::ffff:127.0.0.1")
    assert not reach.allows("other.example", "127.0.0.9")
    assert (await get(f"http://127.0.0.1:{origin.port}/", reach)).status_code == 302
    with pytest.raises(SettingsError, match="outgoing_allow"):
        Reach.of(Settings.load(environ={"PROCJOBS_OUTGOING_ALLOW": "http://x"}))


async def test_no_proxy_of_the_environment_is_used(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{origin.port}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{origin.port}")
    with pytest.raises(AddressRefused):
        await get("http://10.0.0.1/", Reach())
    assert origin.hosts == []


def make_certificate(name: str, cert: Path, key: Path) -> None:
    options = f"-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name}".split()
    names = ["-addext", f"subjectAltName=DNS:{name}"]
    subprocess.run(["openssl", "req", *options, *names, "-keyout", key, "-out", cert], check=True, capture_output=True)


async def test_certificate_and_server_name_are_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    make_certificate("secure.example", cert, key)
    asked: list[str | None] = []
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    server.sni_callback = lambda _socket, name, _context: asked.append(name)
    trusting = ssl.create_default_context(cafile=str(cert))
    async with Origin(server) as origin:
        reach = Reach(ports=frozenset({origin.port}), networks=(ipaddress.ip_network("127.0.0.1/32"),))
        dns = Dns(["127.0.0.1"])
        assert (await get(f"https://secure.example:{origin.port}/", reach, dns, trusting)).status_code == 302
        with pytest.raises(httpx2.ConnectError):
            await get(f"https://other.example:{origin.port}/", reach, dns, trusting)
        assert asked == ["secure.example", "other.example"]
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        with pytest.raises(httpx2.ConnectError, match="certificate verify failed"):
            await get(f"https://secure.example:{origin.port}/", reach, dns)
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))  # an authority of an intranet's own
        assert (await get(f"https://secure.example:{origin.port}/", reach, dns)).status_code == 302


async def test_a_name_without_address_is_a_failed_connection() -> None:
    with pytest.raises(httpx2.ConnectError):
        await get("http://nowhere.example/", Reach(), Dns([]))
