"""Pictures from the web, under the rules that keep clients out of the operator's network.

A name is resolved once and the connection goes to an address that was checked, whatever the name
says later; every redirect is a new address with the same checks. TLS and the Host header keep the
name.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address

import aiodns
import certifi
import httpcore2

from lightvl.multimodal.address import Address, may_connect
from lightvl.multimodal.sources import SourceError
from lightvl.multimodal.url import WebAddress, host_matches, parse_web_address

MAX_REDIRECTS = 5

_REDIRECTS = {301, 302, 303, 307, 308}
_LOOKUP_S = 2.0  # until a name server is asked again
_KEEPALIVE_S = 30.0
_MAX_IDLE_CONNECTIONS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRules:
    """What the fetcher may reach and how long it may take.

    Attributes:
        allowed_domains: Hosts, or `*.suffix`; empty admits every host.
        allow_private: See `may_connect`.
        timeout_s: For one picture, redirects included.
        proxy: URL of a proxy for all fetches. It resolves names itself, so that which addresses
            it reaches is its operator's to say; hosts and literal addresses are checked here.
    """

    max_bytes: int
    allowed_domains: tuple[str, ...] = ()
    allow_private: bool = False
    timeout_s: float = 5.0
    proxy: str | None = None


class Fetcher:
    """An HTTP client with connections kept alive; for one event loop.

    Args:
        rules: What it may reach.
        observe: Told how many seconds each picture took that came whole, without the wait for
            room between its headers and its bytes.
    """

    def __init__(
        self, rules: FetchRules, observe: Callable[[float], None] = lambda _: None
    ) -> None:
        self._rules = rules
        self._observe = observe
        self._resolver: aiodns.DNSResolver | None = None
        self._client: httpcore2.AsyncConnectionPool | None = None
        self._opening = asyncio.Lock()

    async def open(self, url: str) -> "WebSource":
        """Sends a request and waits for the headers of the answer, following redirects.

        Raises:
            SourceError: The address isn't allowed, or no picture can be had there.
        """
        address = parse_web_address(url)
        started_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._rules.timeout_s):
                response = await self._follow(address)
        except TimeoutError:
            raise _too_slow(self._rules) from None
        used_s = asyncio.get_running_loop().time() - started_s
        source = WebSource(response, self._rules, used_s, self._observe)
        if source.num_bytes is not None and source.num_bytes > self._rules.max_bytes:
            await source.close()
            raise _too_long(self._rules)
        return source

    async def close(self) -> None:
        """Closes all connections."""
        if self._client is not None:
            await self._client.aclose()
        if self._resolver is not None:
            await self._resolver.close()

    async def _follow(self, address: WebAddress) -> httpcore2.Response:
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._get(address)
            if response.status not in _REDIRECTS:
                if response.status == 200:
                    return response
                await response.aclose()
                raise SourceError(f"can't be fetched: the server answered {response.status}")
            await response.aclose()
            address = address.redirected(_header(response, b"location") or "")
        raise SourceError(f"can't be fetched: more than {MAX_REDIRECTS} redirects")

    async def _get(self, address: WebAddress) -> httpcore2.Response:
        self._check_host(address.host)
        request = httpcore2.Request(
            "GET",
            httpcore2.URL(
                scheme=address.scheme.encode(),
                host=address.host.encode(),
                port=address.port,
                target=address.target.encode(),
            ),
            headers=[
                (b"Host", address.authority.encode()),
                (b"Accept", b"image/*"),
                (b"Accept-Encoding", b"identity"),
                (b"User-Agent", b"lightvl"),
            ],
        )
        try:
            return await (await self._connections()).handle_async_request(request)
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.ProxyError):
            raise SourceError("can't be fetched: no valid answer from the server") from None

    def _check_host(self, host: str) -> None:
        allowed = self._rules.allowed_domains
        if allowed and not host_matches(host, allowed):
            raise SourceError("can't be fetched: its host is not one that is allowed")
        if self._rules.proxy is not None:
            literal = _literal(host)
            if literal is not None and not may_connect(literal, self._rules.allow_private):
                raise _not_public()

    async def _connections(self) -> httpcore2.AsyncConnectionPool:
        async with self._opening:
            if self._client is None:
                context = await asyncio.to_thread(_tls_context)
                self._client = httpcore2.AsyncConnectionPool(
                    ssl_context=context,
                    proxy=httpcore2.Proxy(self._rules.proxy) if self._rules.proxy else None,
                    max_connections=None,
                    max_keepalive_connections=_MAX_IDLE_CONNECTIONS,
                    keepalive_expiry=_KEEPALIVE_S,
                    network_backend=None if self._rules.proxy else self._pinned(),
                )
            return self._client

    def _pinned(self) -> httpcore2.AsyncNetworkBackend:
        self._resolver = aiodns.DNSResolver(timeout=_LOOKUP_S, tries=2)
        return _PinnedBackend(self._resolver, self._rules.allow_private)


class WebSource:
    """An answer whose headers are there; see `Source`."""

    def __init__(
        self,
        response: httpcore2.Response,
        rules: FetchRules,
        used_s: float,
        observe: Callable[[float], None],
    ) -> None:
        self._response = response
        self._rules = rules
        self._used_s = used_s
        self._observe = observe
        length = _header(response, b"content-length")
        self.num_bytes = int(length) if length is not None and length.isdecimal() else None

    async def read_into(self, room: memoryview) -> int:
        """See `Source`; time spent waiting for room doesn't count against the deadline."""
        began_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._rules.timeout_s - self._used_s):
                num_bytes = await self._read(room)
        except TimeoutError:
            raise _too_slow(self._rules) from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError):
            raise SourceError("can't be fetched: the answer broke off") from None
        finally:
            await self.close()
        self._observe(self._used_s + asyncio.get_running_loop().time() - began_s)
        return num_bytes

    async def _read(self, room: memoryview) -> int:
        done = 0
        chunks: AsyncIterator[bytes] = self._response.aiter_stream()
        async for chunk in chunks:
            if done + len(chunk) > len(room):
                raise _too_long(self._rules)
            room[done : done + len(chunk)] = chunk
            done += len(chunk)
        return done

    async def close(self) -> None:
        """See `Source`."""
        await self._response.aclose()


class _PinnedBackend(httpcore2.AsyncNetworkBackend):
    """Opens connections to checked addresses only."""

    def __init__(self, resolver: aiodns.DNSResolver, allow_private: bool) -> None:
        self._resolver = resolver
        self._allow_private = allow_private
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        for left, address in zip(range(len(addresses) - 1, -1, -1), addresses, strict=True):
            try:
                return await self._network.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if left == 0:
                    raise
        raise _not_public()

    async def _resolve(self, host: str, port: int) -> list[str]:
        """Returns the addresses of `host` that may be used, in the resolver's order."""
        literal = _literal(host)
        if literal is not None:
            found = [str(literal)]
        else:
            try:
                found = await _addresses(self._resolver, host)
            except (aiodns.error.DNSError, UnicodeError):
                raise _not_public() from None
        return [text for text in found if may_connect(ip_address(text), self._allow_private)]


async def _addresses(resolver: aiodns.DNSResolver, host: str) -> list[str]:
    """Asks the name servers; holds no thread, so that slow ones hold up their own names alone."""
    result = await resolver.getaddrinfo(host, family=socket.AF_UNSPEC, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(node.addr[0].decode() for node in result.nodes))


def _literal(host: str) -> Address | None:
    """Returns the address that a host spells, in any notation that resolvers accept."""
    try:
        return ip_address(host) if ":" in host else ip_address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def _tls_context() -> ssl.SSLContext:
    """The system's authorities and certifi's, since small containers have none."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _header(response: httpcore2.Response, name: bytes) -> str | None:
    values = [value for key, value in response.headers if key.lower() == name]
    return values[0].decode("latin-1") if values else None


def _not_public() -> SourceError:
    # One message for names that don't exist and for private ones: it must not tell them apart.
    return SourceError("can't be fetched: its host has no address that may be used")


def _too_slow(rules: FetchRules) -> SourceError:
    return SourceError(f"can't be fetched: it took longer than {rules.timeout_s:g} s")


def _too_long(rules: FetchRules) -> SourceError:
    return SourceError(f"is larger than the {rules.max_bytes} bytes allowed")
