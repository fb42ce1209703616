"""A network of its own for a server under attack, inside a Linux namespace that this process makes.

Every address that the media fetcher must not reach exists here and is a trap: whoever connects to
one is recorded. One address is public; its web server answers as an attacker's would. Names are
answered by a DNS server whose answers change. Prints one JSON object: what each attack was
answered, and which traps were reached. Exit code 77: the namespace can't be made here.

Nothing leaves the namespace: it has no device but its own loopback.
"""

import asyncio
import ctypes
import io
import ipaddress
import itertools
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from urllib.parse import parse_qs, urlsplit

import httpx
from dnslib import AAAA, CNAME, QTYPE, RR, A, DNSRecord
from PIL import Image
from pyroute2 import IPRoute

from lightvl.testing.server import ServerProcess


def _picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    return file.getvalue()


PICTURE = _picture()
PUBLIC, PUBLIC_6 = "93.184.216.34", "2606:2800:220:1::34"
FORBIDDEN = [
    "10.1.2.3",
    "172.16.0.9",
    "192.168.0.7",
    "100.64.1.1",
    "100.100.100.200",
    "169.254.169.254",
    "169.254.1.1",
    "168.63.129.16",
    "192.0.0.192",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.5",
    "192.88.99.1",
    "fc00::1",
    "fd00:ec2::254",
    "fec0::1",
    "64:ff9b::a01:203",
    "2002:a01:203::1",
    "2001:db8::5",
    "2001::5",
    "3fff::7",
    "::ffff:0:a01:203",
]
PORTS = (80, 443, 8080)
NAMES: dict[str, list[list[str]]] = {  # the answers to one lookup after the other, then again
    "public.example.": [[PUBLIC]],
    "private.example.": [["10.1.2.3"]],
    "loopback.example.": [["127.0.0.1"]],
    "metadata.example.": [["169.254.169.254"]],
    "six.example.": [["::1"]],
    "mapped.example.": [["::ffff:a01:203"]],
    "alias.example.": [["private.example."]],
    "rebound.example.": [[PUBLIC], ["127.0.0.1"], ["10.1.2.3"]],
    "both.example.": [["10.1.2.3", PUBLIC, "127.0.0.1"]],
}
OK = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"
ENDLESS = {  # path: what comes first, what then comes again and again, the pause between
    "/slow": (OK + b"Content-Length: 1000\r\n\r\n", b"a", 0.1),
    "/endless": (OK + b"\r\n", bytes(1 << 16), 0.0),
    "/flood": (OK, b"x-more: " + b"a" * 4096 + b"\r\n", 0.0),
}
ANSWERS = {
    "/ok": OK + b"Content-Length: %d\r\n\r\n" % len(PICTURE) + PICTURE,
    "/loop": b"HTTP/1.1 302 Go\r\nLocation: /loop\r\nContent-Length: 0\r\n\r\n",
    "/short": OK + b"Content-Length: 1000\r\n\r\n" + PICTURE[:10],
    "/huge": OK + b"Content-Length: 1000000000000\r\n\r\n",
    "/negative": OK + b"Content-Length: -5\r\n\r\n" + PICTURE,
    "/gzip": OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
}
CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
MS_REC, MS_PRIVATE, MS_BIND = 0x4000, 0x40000, 0x1000


def enter_namespace() -> bool:
    """Moves this process into a network and a mount namespace; names are asked of 127.0.0.53."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWNET) != 0:
        return False
    if libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        return False
    with tempfile.NamedTemporaryFile("w", delete=False) as file:
        file.write("nameserver 127.0.0.53\noptions timeout:1 attempts:1\n")
    bound = libc.mount(file.name.encode(), b"/etc/resolv.conf", None, MS_BIND, None) == 0
    with IPRoute() as route:
        loopback = route.link_lookup(ifname="lo")[0]
        route.link("set", index=loopback, state="up")
        for address in [PUBLIC, PUBLIC_6, *FORBIDDEN]:
            length = 128 if ":" in address else 32
            route.addr("add", index=loopback, address=address, prefixlen=length)
    return bool(bound)


class World:
    """The listeners of the namespace.

    Attributes:
        traps: Addresses that were reached and must not be.
    """

    def __init__(self) -> None:
        self.traps: list[str] = []
        self._answers: dict[str, Iterator[list[str]]] = {
            name: itertools.cycle(answers) for name, answers in NAMES.items()
        }
        self._last: dict[str, list[str]] = {}

    async def start(self) -> None:
        """Opens every port."""
        for port in PORTS:
            for host in ("0.0.0.0", "::"):
                await asyncio.start_server(self._connected, host, port)
        await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Names(self), local_addr=("127.0.0.53", 53)
        )

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        here = writer.get_extra_info("sockname")[0].removeprefix("::ffff:")
        if here not in (PUBLIC, PUBLIC_6):
            self.traps.append(here)
            writer.close()
            return
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            async for chunk in self._answer(head.split(" ")[1]):
                writer.write(chunk)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, target: str) -> AsyncIterator[bytes]:
        parts = urlsplit(target)
        if parts.path == "/to":
            to = parse_qs(parts.query)["u"][0].encode()
            yield b"HTTP/1.1 302 Go\r\nLocation: " + to + b"\r\nContent-Length: 0\r\n\r\n"
        elif parts.path == "/silent":
            await asyncio.Event().wait()
        elif parts.path in ENDLESS:
            begin, more, pause_s = ENDLESS[parts.path]
            yield begin
            while True:
                yield more
                await asyncio.sleep(pause_s)
        else:
            yield ANSWERS.get(parts.path, b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")

    async def reached_by(self, addresses: list[str]) -> list[str]:
        """Connects to addresses directly and returns which traps noticed: the traps' own test."""
        for address in addresses:
            _, writer = await asyncio.open_connection(address, PORTS[0])
            writer.close()
        while len(self.traps) < len(addresses):
            await asyncio.sleep(0.01)
        noticed, self.traps = self.traps, []
        return noticed

    def answer_name(self, data: bytes) -> bytes:
        """Answers a DNS query; the A and AAAA queries of one lookup get one answer."""
        query = DNSRecord.parse(data)
        reply = query.reply()
        name, kind = str(query.q.qname).lower(), QTYPE[query.q.qtype]
        if name in self._answers:
            if kind == "A" or name not in self._last:
                self._last[name] = next(self._answers[name])
            self._add(reply, query.q.qname, kind, self._last[name])
        return bytes(reply.pack())

    def _add(self, reply: DNSRecord, name: object, kind: str, values: list[str]) -> None:
        for value in values:
            if value.endswith("."):
                reply.add_answer(RR(name, QTYPE.CNAME, rdata=CNAME(value), ttl=0))
                self._add(reply, value, kind, NAMES[value][0])
            elif ":" in value and kind == "AAAA":
                reply.add_answer(RR(name, QTYPE.AAAA, rdata=AAAA(value), ttl=0))
            elif ":" not in value and kind == "A":
                reply.add_answer(RR(name, QTYPE.A, rdata=A(value), ttl=0))


class _Names(asyncio.DatagramProtocol):
    def __init__(self, world: World) -> None:
        self._world = world

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(self._world.answer_name(data), addr)  # type: ignore[attr-defined]


def spelled(address: str) -> list[str]:
    """An address as hosts of URLs spell it."""
    if ":" in address:
        return [f"[{address}]"]
    number = int(ipaddress.IPv4Address(address))
    a, b, c, d = address.split(".")
    return [
        *(address, f"{address}.", str(number), hex(number), f"0{number:o}"),
        *(f"0x{int(a):x}.{b}.{c}.{d}", f"0{int(a):o}.{b}.{c}.{d}"),
        *(f"{a}.{number & 0xFFFFFF}", f"{a}.{b}.{number & 0xFFFF}", f"[::ffff:{address}]"),
        f"[::{address}]",
    ]


def attacks(own_port: int) -> Iterator[str]:
    """Every URL that must be refused."""
    hosts = ["127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::", *FORBIDDEN]
    for host in [s for address in hosts for s in spelled(address)]:
        yield f"http://{host}/ok"
    for host in ("127.0.0.1", "169.254.169.254", "10.1.2.3", "[::1]", "2130706433", "0x7f.1"):
        yield f"http://{PUBLIC}/to?u=http://{host}/ok"
        yield f"http://{PUBLIC}/to?u=http://{PUBLIC}/to%3Fu=http://{host}:8080/ok"
        yield f"http://{PUBLIC}/to?u=//{host}/ok"
        for trick in ("@{}", "\\@{}", "#@{}", "%23@{}", "?@{}", ":80@{}", "\t@{}", "@{}\\@x"):
            yield f"http://{PUBLIC}{trick.format(host)}/ok"
            yield f"http://{host}{trick.format(PUBLIC)}/ok"
        yield f"https://{host}/ok"
        yield f"http://{host}:{own_port}/health"
    for scheme in ("file:///etc/passwd", "gopher://127.0.0.1:80/_x", "ftp://127.0.0.1/x"):
        yield scheme
        yield f"http://{PUBLIC}/to?u={scheme}"
    yield f"http://{PUBLIC}/to?u=data:image/png;base64,AAAA"
    for name in NAMES:
        if name not in ("public.example.", "both.example.", "rebound.example."):
            yield f"http://{name}/ok"
            yield f"http://{name[:-1].upper()}:8080/ok"
            yield f"http://{PUBLIC}/to?u=http://{name[:-1]}/ok"
    yield "http://nowhere.example/ok"
    for path in ("loop", "slow", "silent", "endless", "flood", "short", "huge", "negative", "gzip"):
        yield f"http://{PUBLIC}/{path}"


async def ask(http: httpx.AsyncClient, url: str, *, chat: bool = False) -> str:
    """Asks about the picture at a URL; returns the status and what was said."""
    if chat:
        part = {"type": "image_url", "image_url": {"url": url}}
        messages = [{"role": "user", "content": [part]}]
        answer = await http.post("/v1/chat/completions", json={"model": "m", "messages": messages})
    else:
        images = {"images": [{"type": "url", "data": url}]}
        body = {"inputs": "<image>", "multimodal_params": images}
        answer = await http.post("/generate", json=body)
    return f"{answer.status_code} {answer.text[:300]}"


async def run(server: ServerProcess, own_port: int) -> dict[str, object]:
    """Starts the world, attacks the server, and tells what happened."""
    world = World()
    await world.start()
    control = await world.reached_by(FORBIDDEN)
    answers: dict[str, str] = {}
    good: list[str] = []
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
        gate = asyncio.Semaphore(16)

        async def attack(number: int, url: str) -> None:
            async with gate:
                answers[url] = await ask(http, url, chat=number % 2 == 0)
                if number % 40 == 0:
                    good.append(await ask(http, f"http://{PUBLIC}/ok"))

        await asyncio.gather(*(attack(n, url) for n, url in enumerate(attacks(own_port))))
        good += [await ask(http, f"http://{host}/ok") for host in (PUBLIC, f"[{PUBLIC_6}]")]
        good += [await ask(http, f"http://{n}/ok") for n in ("public.example", "both.example")]
        good.append(await ask(http, f"http://{PUBLIC}/to?u=http://public.example:8080/ok"))
        rebound = [await ask(http, "http://rebound.example/ok") for _ in range(12)]
    return {
        "answers": answers,
        "good": good,
        "rebound": rebound,
        "traps": world.traps,
        "control": control,
    }


def main() -> int:
    """Makes the namespace and runs the attacks in it."""
    if not enter_namespace():
        return 77
    with ServerProcess("--model_name", "m", environment={"REQUEST_TIMEOUT": "2"}) as server:
        own_port = urlsplit(server.url).port or 0
        json.dump(asyncio.run(run(server, own_port)), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
