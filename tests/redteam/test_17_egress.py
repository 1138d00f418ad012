"""THREATS E.17: the egress proxy, with real sockets; a resolver of the test where names matter."""

import asyncio
import ipaddress
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from enclave_parent_gateway.egress.addresses import AddressPolicy
from enclave_parent_gateway.egress.proxy import EgressLimits
from tests.redteam import egress_attacks
from tests.redteam.arena import Arena
from tests.redteam.conftest import needs_root
from tests.redteam.hostile_notebook import HostileNotebook
from tests.redteam.places import Place
from tests.support.egress import LOOPBACK, OWN_LOOPBACK, client_hello, names, proxy_server, server
from tests.support.enclave_home import kernel, run_code
from tests.support.local_services import HOST_CREDENTIALS

_INTERNAL = ["169.254.169.254", "169.254.170.2", "127.0.0.1", "10.0.0.1", "172.16.0.1"]
_INTERNAL += ["192.168.0.1", "100.64.0.1", "fd00:ec2::254", "::1", "fe80::1"]

# How a destination can be written so that a careless filter lets it pass and a resolver does not.
LITERALS = {
    # numeric forms that getaddrinfo takes for 169.254.169.254 or 127.0.0.1
    **dict.fromkeys(("2852039166", "0xA9FEA9FE", "0251.0376.0251.0376"), 400),
    **dict.fromkeys(("169.254.43518", "169.16689662", "0xa9.0xfe.0xa9.0xfe"), 400),
    **dict.fromkeys(("025177524776", "169.254.0251.254", "0xa9fe.43518", "127.1", "127.0.1"), 400),
    **dict.fromkeys(("2130706433", "0x7f000001", "017700000001", "0", "0x0", "1.2.3.4.5"), 400),
    **dict.fromkeys(("00000169.254.169.254", "169.254.169.254.", "4294967296"), 400),
    # bytes that look like them, or hide another host
    **dict.fromkeys(
        ("①⑥⑨.②⑤④.①⑥⑨.②⑤④", "169。254。169。254", "\uff11\uff16\uff19.254.169.254"), 400
    ),
    **dict.fromkeys(("%31%36%39.254.169.254", "169.254.169.254%00.good.example"), 400),
    **dict.fromkeys(("good.example@169.254.169.254", "169.254.169.254#good.example"), 400),
    **dict.fromkeys(("[::ffff:169.254.169.254%25eth0]", "[fe80::1%eth0]", "[0xa9fe::]"), 400),
    # addresses in their usual form
    **dict.fromkeys(("169.254.169.254", "169.254.170.2", "169.254.169.253", "127.0.0.1"), 403),
    **dict.fromkeys(("127.255.255.254", "0.0.0.0", "10.0.0.1", "172.31.255.255"), 403),  # noqa: S104
    **dict.fromkeys(("192.168.1.1", "100.64.0.1", "100.100.100.200", "168.63.129.16"), 403),
    **dict.fromkeys(("192.0.0.192", "198.18.0.1", "224.0.0.1", "255.255.255.255"), 403),
    **dict.fromkeys(("240.0.0.1", "192.88.99.1", "192.0.2.1"), 403),
    # IPv6, and IPv4 inside IPv6
    **dict.fromkeys(
        ("[::1]", "[::]", "[fd00:ec2::254]", "[fe80::1]", "[ff02::1]", "[fec0::1]"), 403
    ),
    **dict.fromkeys(
        ("[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[::ffff:0:a9fe:a9fe]"), 403
    ),
    **dict.fromkeys(("[::169.254.169.254]", "[::a9fe:a9fe]", "[0:0:0:0:0:ffff:7f00:1]"), 403),
    **dict.fromkeys(("[64:ff9b::169.254.169.254]", "[64:ff9b::a9fe:a9fe]"), 403),
    **dict.fromkeys(("[64:ff9b:1::a9fe:a9fe]", "[2002:a9fe:a9fe::1]", "[2002:7f00:1::]"), 403),
    **dict.fromkeys(("[2001:0:a9fe:a9fe::1]", "[2001:0:0:0:0:0:5601:5601]", "[2001:db8::1]"), 403),
    **dict.fromkeys(("[2600::5efe:a9fe:a9fe]", "[2600::200:5efe:127.0.0.1]", "[100::1]"), 403),
}

# What a name can resolve to.
ANSWERS = [
    *("127.0.0.1", "169.254.169.254", "10.0.0.1", "192.168.0.1", "100.64.0.1", "0.0.0.0"),  # noqa: S104
    *("::1", "::", "fd00:ec2::254", "fe80::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254"),
    *("::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::"),
    *("2001:0:7f00:1::", "2600::5efe:7f00:1", "ff0e::1", "224.0.0.251", "255.255.255.255"),
    *("127.0.0.1 169.254.169.254 ::1", "fe80::1%1"),
]


def test_the_table_is_long_enough() -> None:
    assert len(LITERALS) >= 40 and len(ANSWERS) >= 20


class Trap:
    """A server on loopback that counts who comes."""

    def __init__(self) -> None:
        self.count = 0
        self.received = b""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        while data := await reader.read(65536):
            self.received += data


def status_of(answer: bytes) -> int:
    match = re.match(rb"HTTP/1\.1 (\d{3}) enclave: ", answer)
    return int(match[1]) if match else 0


@pytest.mark.parametrize("form", ["connect", "absolute"])
async def test_n01_n02_n03_no_way_to_write_an_address_helps(tmp_path: Path, form: str) -> None:
    """On an allowlist that lets every name pass: only the address decides."""
    trap = Trap()
    async with server(trap) as port, proxy_server(tmp_path, allow_everything=True) as proxy:
        for host, expected in LITERALS.items():
            if form == "connect":
                request = f"CONNECT {host}:{port} HTTP/1.1\r\n\r\n"
            else:
                request = f"GET http://{host}:{port}/latest/meta-data/ HTTP/1.1\r\n\r\n"
            answer = await proxy.ask(request)
            assert status_of(answer) == expected, (host, answer)
        assert trap.count == 0
    # The same proxy does reach it where the test's policy lets it.
    async with (
        server(trap) as port,
        proxy_server(tmp_path, allow_everything=True, addresses=LOOPBACK) as proxy,
    ):
        status, _, writer = await proxy.connect(f"127.0.0.1:{port}")
        assert status.startswith(b"HTTP/1.1 200")
        writer.close()
        assert trap.count == 1


@pytest.mark.parametrize("resolved", ANSWERS)
async def test_n02_names_that_resolve_to_such_addresses(tmp_path: Path, resolved: str) -> None:
    trap = Trap()
    async with (
        server(trap) as port,
        proxy_server(
            tmp_path, f"good.example:{port}", resolve=names({"good.example": [resolved]})
        ) as proxy,
    ):
        for request in (f"CONNECT good.example:{port}", f"GET http://good.example:{port}/"):
            assert status_of(await proxy.ask(f"{request} HTTP/1.1\r\n\r\n")) == 403
        assert trap.count == 0


@needs_root
def test_n01_from_a_notebook(notebook: HostileNotebook) -> None:
    """The real proxy refuses what it is asked for; without it there is no network at all."""
    code = "import socket\ndef ask(host):\n"
    code += "    with socket.create_connection(('127.0.0.1', 3128)) as s:\n"
    code += "        s.sendall(f'CONNECT {host}:80 HTTP/1.1\\r\\n\\r\\n'.encode())\n"
    code += "        return s.recv(1000)"
    assert not notebook.cell(code).error
    for address in _INTERNAL:
        host = f"[{address}]" if ":" in address else address
        assert notebook.value(f"ask({host!r})").startswith(b"HTTP/1.1 403 enclave: ")
    outside = ["169.254.169.254", "1.1.1.1", "10.0.0.1"]
    direct = notebook.run(egress_attacks.reach_the_network, outside)
    assert set(direct.values()) == {"ENETUNREACH"}
    sixth = notebook.run(egress_attacks.reach_the_network, ["fd00:ec2::254", "2600::1"])
    assert set(sixth.values()) <= {"ENETUNREACH", "EADDRNOTAVAIL"}


async def test_n04_rebinding(tmp_path: Path) -> None:
    """The address that was checked is the one connected to; each connection asks once."""
    good, internal = Trap(), Trap()
    policy = AddressPolicy(reachable=[*_only("127.0.0.7")])
    asked: list[str] = []
    answers = ["127.0.0.7", "127.0.0.1", "127.0.0.1 127.0.0.7"]
    async with (
        server(internal) as port,
        server(good, "127.0.0.7", port),
        proxy_server(
            tmp_path,
            f"flip.example:{port}",
            addresses=policy,
            resolve=names({"flip.example": answers}, asked),
        ) as proxy,
    ):
        for expected in (b"200", b"403", b"200"):
            status, _, writer = await proxy.connect(f"flip.example:{port}")
            assert status.split()[1] == expected
            writer.close()
        opened = [entry for entry in proxy.logged() if entry.event == "opened"]
        assert {entry.address for entry in opened} == {"127.0.0.7"}
    assert asked == ["flip.example"] * 3
    assert (good.count, internal.count) == (2, 0)


def _only(address: str) -> list[ipaddress.IPv4Network]:
    return [ipaddress.IPv4Network(address)]


SMUGGLED = [
    "CONNECT good.example:{port} HTTP/1.1\r\n\r\nGET http://evil.example/ HTTP/1.1\r\n\r\n",
    "CONNECT good.example:{port} HTTP/1.1\r\n\r\n\r\n",
    "CONNECT good.example:{port}\r\nX: y HTTP/1.1\r\n\r\n",
    "CONNECT good.example:{port} HTTP/1.1\nHost: evil.example\n\n\r\n\r\n",
    "CONNECT good.example:{port} HTTP/1.1\r\nHost: evil.example:{port}\r\n\r\n",
    "CONNECT good.example:{port}@evil.example:{port} HTTP/1.1\r\n\r\n",
    "CONNECT evil.example@good.example:{port} HTTP/1.1\r\n\r\n",
    "CONNECT good.example:{port} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "CONNECT good.example:{port} HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody",
    "CONNECT good.example:{port} HTTP/1.1\r\nX: a\r\n folded\r\n\r\n",
    "CONNECT good.example:{port} HTTP/1.1\r\nX: a\x00\r\n\r\n",
    "CONNECT good.example:{port} HTTP/1.1\r\nX: a\rb\r\n\r\n",
    "CONNECT good.example:{port} HTTP/2.0\r\n\r\n",
    "CONNECT  good.example:{port} HTTP/1.1\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: good.example:{port}\r\n\r\n",
    "GET https://good.example:{port}/ HTTP/1.1\r\n\r\n",
    "GET http://good.example:{port}/ HTTP/1.1\r\n\r\nGET http://evil.example/ HTTP/1.1\r\n\r\n",
    "POST http://good.example:{port}/ HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody+more",
    "POST http://good.example:{port}/ HTTP/1.1\r\nContent-Length: 4\r\n"
    "Content-Length: 5\r\n\r\nbody",
    "POST http://good.example:{port}/ HTTP/1.1\r\nContent-Length: 4\r\n"
    "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST http://good.example:{port}/ HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "GET http://good.example:{port}\\@evil.example/ HTTP/1.1\r\n\r\n",
    "GET http://good.example:{port}#@evil.example/ HTTP/1.1\r\n\r\n",
    "GET http://evil@good.example:{port}/ HTTP/1.1\r\n\r\n",
    "GET http://good.example:{port}/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "GET http://good.example:{port}/ HTTP/1.1\r\nConnection: Content-Length\r\n\r\n",
    "GET http://good.example:{port}/\tHTTP/1.1\r\n\r\n",
]


@pytest.mark.parametrize("request_text", SMUGGLED)
async def test_n05_smuggling(tmp_path: Path, request_text: str) -> None:
    """One answer, 400, and the server behind the proxy hears nothing."""
    trap = Trap()
    known = {"good.example": ["127.0.0.1"], "evil.example": ["127.0.0.1"]}
    async with (
        server(trap) as port,
        proxy_server(
            tmp_path, f"good.example:{port}", addresses=LOOPBACK, resolve=names(known)
        ) as proxy,
    ):
        answer = await proxy.ask(request_text.format(port=port))
        assert status_of(answer) == 400, answer
        assert answer.count(b"HTTP/1.1 ") == 1
        assert trap.count == 0


async def test_n05_heads_in_small_pieces(tmp_path: Path) -> None:
    """Where the bytes are cut changes nothing."""
    trap = Trap()
    resolve = names({"good.example": ["127.0.0.1"]})
    async with (
        server(trap) as port,
        proxy_server(
            tmp_path, f"good.example:{port}", addresses=LOOPBACK, resolve=resolve
        ) as proxy,
    ):
        for head, expected in (
            (f"CONNECT good.example:{port} HTTP/1.1\r\nX: y\r\n\r\n", b"200"),
            (f"CONNECT good.example:{port} HTTP/1.1\r\nX: y\r\n z\r\n\r\n", b"400"),
        ):
            reader, writer = await proxy.open()
            for character in head:
                writer.write(character.encode())
                await writer.drain()
                await asyncio.sleep(0)
            assert (await reader.readline()).split()[1] == expected
            writer.close()


async def test_n05_heads_that_are_too_large(tmp_path: Path) -> None:
    async with proxy_server(tmp_path, "good.example:443") as proxy:
        for head in (b"A" * 100_000, b"CONNECT good.example:443 HTTP/1.1\r\nX: " + b"a" * 100_000):
            assert status_of(await proxy.ask(head)) == 431


@needs_root
@pytest.mark.parametrize(
    "first",
    [
        client_hello("evil.example"),
        client_hello(None),
        client_hello("good.example.evil.example"),
        b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
    ],
    ids=["another", "none", "longer", "http", "ssh"],
)
async def test_n06_tls_for_somebody_else(tmp_path: Path, first: bytes) -> None:
    """Behind an allowed name there may be a shared address: TLS has to ask for that name."""
    trap = Trap()
    resolve = names({"good.example": [OWN_LOOPBACK]})
    async with (
        server(trap, OWN_LOOPBACK, 443),
        proxy_server(tmp_path, "good.example:443", addresses=LOOPBACK, resolve=resolve) as proxy,
    ):
        status, reader, writer = await proxy.connect("good.example:443")
        assert status.startswith(b"HTTP/1.1 200")
        writer.write(first)
        # A fatal TLS alert, and the end.
        assert await asyncio.wait_for(reader.read(), 10) == b"\x15\x03\x03\x00\x02\x02\x70"
        writer.close()
        assert trap.received == b""
        assert (await proxy.last_logged("closed")).reason
        status, reader, writer = await proxy.connect("good.example:443")
        hello = client_hello("good.example")
        writer.write(hello)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 10) == b""
        assert trap.received == hello
        writer.close()


async def test_n07_names_that_are_not_allowed_are_not_even_looked_up(tmp_path: Path) -> None:
    """A lookup would carry data to whoever runs the name's server. What an allowed host may be
    used for stays: it is the user's own data, and the log has its bytes."""
    asked: list[str] = []
    async with proxy_server(tmp_path, "good.example:443", resolve=names({}, asked)) as proxy:
        for host in ("secret-data.evil.example:443", "good.example:80", "x.good.example:443"):
            assert status_of(await proxy.ask(f"CONNECT {host} HTTP/1.1\r\n\r\n")) == 403
    assert asked == []


@needs_root
def test_n08_vaults_have_no_way_to_it(arena: Arena, hostile: Place) -> None:
    """A notebook has one, a listener of its own network; a package has no sockets at all."""
    outcome = hostile.run(egress_attacks.reach_the_proxy)
    assert outcome == {"proxy": "EPERM" if hostile is arena.vault else "done"}


@needs_root
def test_n08_each_notebook_has_its_own(notebook: HostileNotebook) -> None:
    """The log names the notebook that asked, and no other can speak in its place."""
    ask = "import socket; s = socket.create_connection(('127.0.0.1', 3128)); "
    ask += "s.sendall(b'CONNECT mine-{}.example:443 HTTP/1.1\\r\\n\\r\\n'); print(s.recv(12))"
    with kernel(cwd=str(notebook.folder)) as (_, other):
        assert "403" in run_code(other, ask.format("other"))
        assert "403" in notebook.cell(ask.format("first")).text
        lines = notebook.home.run("proxy", "log").stdout.splitlines()
    (first,) = {line.split()[3] for line in lines if "mine-first" in line.split()[4]}
    (second,) = {line.split()[3] for line in lines if "mine-other" in line.split()[4]}
    assert first != second


async def test_n09_it_lends_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is added to a request, and what is for proxies and metadata services is dropped."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDOFTHEPARENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-parent")
    trap = Trap()
    resolve = names({"good.example": ["127.0.0.1"]})
    async with (
        server(trap) as port,
        proxy_server(
            tmp_path, f"good.example:{port}", addresses=LOOPBACK, resolve=resolve
        ) as proxy,
    ):
        _, writer = await proxy.open()
        writer.write(
            f"GET http://good.example:{port}/x HTTP/1.1\r\nProxy-Authorization: Basic eDp5\r\n"
            "X-aws-ec2-metadata-token: t\r\nMetadata: true\r\nAccept: */*\r\n\r\n".encode()
        )
        for _ in range(200):
            if trap.received.endswith(b"\r\n\r\n"):
                break
            await asyncio.sleep(0.02)
        writer.close()
        assert trap.received == (
            f"GET /x HTTP/1.1\r\nHost: good.example:{port}\r\nAccept: */*\r\n"
            "Connection: close\r\n\r\n".encode()
        )


@needs_root
def test_n09_the_parents_credentials_are_in_no_log_and_no_status(notebook: HostileNotebook) -> None:
    """They were sent to the enclave when the notebook loaded its package, and left no trace."""
    home = notebook.home
    shown = home.run("status", "--json").stdout + home.run("status").stdout
    shown += home.run("logs").stdout + home.run("proxy", "log", "--json").stdout
    shown += "".join(path.read_text(errors="replace") for path in (home.runtime / "log").iterdir())
    assert "vault" in shown and HOST_CREDENTIALS.secret_access_key not in shown
    environ = notebook.value("sorted(os.environ.items())")
    assert not [name for name, _ in environ if name.startswith("AWS_")]


async def test_n10_redirects_are_requests_of_their_own(tmp_path: Path) -> None:
    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest/\r\n"
            b"Content-Length: 0\r\n\r\n"
        )
        await writer.drain()

    resolve = names({"good.example": ["127.0.0.1"]})
    async with (
        server(redirect) as port,
        proxy_server(
            tmp_path, f"good.example:{port}", addresses=LOOPBACK, resolve=resolve
        ) as proxy,
    ):
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({"http": f"http://127.0.0.1:{proxy.port}"})
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            await asyncio.to_thread(opener.open, f"http://good.example:{port}/", None, 10)
        assert refused.value.code == 403 and "169.254.169.254" in str(refused.value.reason)
        refused.value.close()


async def test_slow_loris(tmp_path: Path) -> None:
    """Those who drip bytes are dropped in time, and keep nobody else waiting."""
    trap = Trap()
    limits = EgressLimits(head_s=1.0)
    resolve = names({"good.example": ["127.0.0.1"]})
    async with (
        server(trap) as port,
        proxy_server(
            tmp_path, f"good.example:{port}", addresses=LOOPBACK, resolve=resolve, limits=limits
        ) as proxy,
    ):

        async def drip() -> bytes:
            reader, writer = await proxy.open()
            try:
                for character in f"CONNECT good.example:{port} HTTP/1.1\r\nX: " + "y" * 1000:
                    writer.write(character.encode())
                    await writer.drain()
                    await asyncio.sleep(0.1)
            except OSError:
                pass
            return await reader.read()

        dripping = [asyncio.create_task(drip()) for _ in range(100)]
        await asyncio.sleep(0.3)
        began = asyncio.get_running_loop().time()
        status, _, writer = await proxy.connect(f"good.example:{port}")
        assert status.startswith(b"HTTP/1.1 200")
        assert asyncio.get_running_loop().time() - began < 1.0
        writer.close()
        for _ in range(100):
            if proxy.proxy.connections == 0:
                break
            await asyncio.sleep(0.1)
        assert proxy.proxy.connections == 0
        reasons = [entry.reason or "" for entry in proxy.logged()]
        assert sum("no whole request within 1 s" in reason for reason in reasons) == 100
        for task in dripping:
            task.cancel()
        await asyncio.gather(*dripping, return_exceptions=True)
