"""Name servers that don't answer."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any, cast

import aiodns
import pytest
from dnslib import RR, A, DNSRecord

from tests.unit.http_server import BODY, ok, serving
from tests.unit.test_fetch import RULES, fetching, get, refused, run


class _NameServer(asyncio.DatagramProtocol):
    """Knows pictures.example alone, and is silent on all else."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)
        self.num_silent = 0

    def datagram_received(self, data: bytes, address: Any) -> None:
        reply = DNSRecord.parse(data).reply()
        if str(reply.q.qname) != "pictures.example.":
            self.num_silent += 1
            return
        if reply.q.qtype == 1:
            reply.add_answer(RR(reply.q.qname, rdata=A("127.0.0.1"), ttl=0))
        self.transport.sendto(reply.pack(), address)


def test_names_that_nobody_answers_for_hold_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        transport, names = await loop.create_datagram_endpoint(_NameServer, ("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        resolver = partial(aiodns.DNSResolver, ["127.0.0.1"], udp_port=port, domains=[])
        monkeypatch.setattr(aiodns, "DNSResolver", resolver)
        rules = replace(RULES, timeout_s=2.0)
        async with serving(lambda *_: ok()) as server, fetching(rules) as fetcher:
            silent = [
                asyncio.create_task(fetcher.open(f"http://n{n}.example:{server.port}/"))
                for n in range(200)
            ]
            while names.num_silent < 2 * len(silent):
                await asyncio.sleep(0.01)
            url = f"http://pictures.example:{server.port}/"
            async with asyncio.timeout(1.0):
                assert await get(fetcher, url) == BODY
            assert not any(task.done() for task in silent)
            for task in silent:
                assert "longer than 2 s" in await refused(task)
        transport.close()

    run(test())
