"""Addresses of pictures as clients send them, taken apart once and for all."""

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from urllib.parse import quote, unquote, urljoin, urlsplit

from lightvl.multimodal.sources import SourceError

_DEFAULT_PORT = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?\.?")
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")
_KEPT = "!#$%&'()*+,/:;=?@[]~"
_NOT_AN_ADDRESS = "is not a valid address: expected http, https, data or base64"


@dataclass(frozen=True, slots=True)
class WebAddress:
    """An http or https URL; all that is used of it later is in these fields.

    Attributes:
        host: Lower case, without a trailing dot; IPv6 literals without brackets.
        target: Path and query, percent-encoded.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """The `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORT[self.scheme] else f"{host}:{self.port}"

    def redirected(self, location: str) -> "WebAddress":
        """Returns where a redirect leads.

        Raises:
            SourceError: It isn't an http or https URL.
        """
        base = f"{self.scheme}://{self.authority}{self.target}"
        try:
            target = urljoin(base, location.strip())
        except ValueError:
            raise SourceError(_NOT_AN_ADDRESS) from None
        return parse_web_address(target)


def parse_web_address(text: str) -> WebAddress:
    """Takes an http or https URL apart.

    Raises:
        SourceError: It is something else, or ambiguous: control characters, spaces, backslashes,
            a user name.
    """
    if _UNSAFE.search(text):
        raise SourceError(_NOT_AN_ADDRESS)
    try:
        parts = urlsplit(text)
        port = parts.port
        host = _canonical_host(parts.hostname or "")
    except ValueError:
        raise SourceError(_NOT_AN_ADDRESS) from None
    if parts.scheme not in _DEFAULT_PORT or port == 0:
        raise SourceError(_NOT_AN_ADDRESS)
    if "@" in parts.netloc:
        raise SourceError("has a user name in its address, which is not allowed")
    target = quote(parts.path or "/", safe=_KEPT) + (
        f"?{quote(parts.query, safe=_KEPT)}" if parts.query else ""
    )
    return WebAddress(parts.scheme, host, port or _DEFAULT_PORT[parts.scheme], target)


def _canonical_host(host: str) -> str:
    """Returns a host's one spelling; ValueError if it has none."""
    if ":" in host:
        address = IPv6Address(host)
        if address.scope_id is not None:
            raise ValueError
        return str(address)
    encoded = host.encode("idna").decode("ascii").lower()
    if not _HOST.fullmatch(encoded):
        raise ValueError
    return encoded.removesuffix(".")


def host_matches(host: str, patterns: tuple[str, ...]) -> bool:
    """Whether a host is one of `patterns`: exact, or `*.suffix` for any host below the suffix."""
    for pattern in patterns:
        pattern = pattern.lower().removesuffix(".")
        if pattern.startswith("*."):
            if host.endswith(pattern[1:]) and host != pattern[2:]:
                return True
        elif host == pattern.strip("[]"):
            return True
    return False


def parse_file_address(text: str) -> str:
    """Returns the absolute path of `file:///...` or `file://localhost/...`.

    Raises:
        SourceError: It isn't one.
    """
    parts = urlsplit(text)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise SourceError("is not a valid file address")
    return path
