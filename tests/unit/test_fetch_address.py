"""Which addresses and URLs the fetcher accepts."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightvl.multimodal.address import may_connect
from lightvl.multimodal.sources import SourceError
from lightvl.multimodal.url import WebAddress, host_matches, parse_file_address, parse_web_address

PUBLIC = ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::5"]
PRIVATE = [
    *("127.0.0.1", "127.255.255.254", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("100.64.0.1", "100.127.255.255", "::1", "fc00::1", "fd12:3456::1"),
]
NEVER = [
    *("0.0.0.0", "0.1.2.3", "169.254.1.1", "169.254.169.254", "224.0.0.1", "239.1.1.1"),
    *("255.255.255.255", "240.0.0.1", "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.7"),
    *("203.0.113.9", "100.100.100.200", "168.63.129.16", "192.0.0.192", "::", "fe80::1"),
    *("fe80::1%1", "fec0::1", "ff02::1", "100::1", "2001:db8::1", "2001::1", "fd00:ec2::254"),
    *("fd20:ce::254", "3fff::1", "5f00::1", "64:ff9b:1::1", "::127.0.0.1", "4000::1"),
]


def forms(ipv4: str) -> list[str]:
    """IPv6 addresses that carry an IPv4 address: mapped, translated, NAT64, 6to4."""
    number = int(ip_address(ipv4))
    high, low = f"{number >> 16:x}", f"{number & 0xFFFF:x}"
    return [
        f"::ffff:{high}:{low}",
        f"::ffff:0:{high}:{low}",
        f"64:ff9b::{high}:{low}",
        f"2002:{high}:{low}::1",
    ]


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_allowed(text: str) -> None:
    assert may_connect(ip_address(text), allow_private=False)


@pytest.mark.parametrize("text", PRIVATE)
def test_private_addresses_need_the_flag(text: str) -> None:
    assert not may_connect(ip_address(text), allow_private=False)
    assert may_connect(ip_address(text), allow_private=True)


@pytest.mark.parametrize("text", NEVER)
def test_others_are_never_allowed(text: str) -> None:
    assert not may_connect(ip_address(text), allow_private=False)
    assert not may_connect(ip_address(text), allow_private=True)


@pytest.mark.parametrize("ipv4", [text for text in PUBLIC + PRIVATE + NEVER if ":" not in text])
@pytest.mark.parametrize("allow_private", [False, True])
def test_ipv6_forms_are_judged_by_the_ipv4_address_inside(ipv4: str, allow_private: bool) -> None:
    expected = may_connect(ip_address(ipv4), allow_private)
    for form in forms(ipv4):
        assert may_connect(ip_address(form), allow_private) == expected, form


@given(st.ip_addresses())
def test_nothing_is_allowed_that_python_knows_to_be_special(address: object) -> None:
    ip = ip_address(str(address))
    if may_connect(ip, allow_private=False):
        special = [ip.is_loopback, ip.is_link_local, ip.is_multicast, ip.is_unspecified]
        assert not any(special)
        assert ip.is_global or ip.version == 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://a.example", WebAddress("http", "a.example", 80, "/")),
        ("HTTPS://A.Example.:8443/x?y=1#z", WebAddress("https", "a.example", 8443, "/x?y=1")),
        ("https://[2606:4700::0:1]/", WebAddress("https", "2606:4700::1", 443, "/")),
        (
            "http://bücher.example/ä?ö=%20",
            WebAddress("http", "xn--bcher-kva.example", 80, "/%C3%A4?%C3%B6=%20"),
        ),
        ("http://1.2.3.4/%2e%2e", WebAddress("http", "1.2.3.4", 80, "/%2e%2e")),
    ],
)
def test_urls_are_taken_apart(text: str, expected: WebAddress) -> None:
    assert parse_web_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "a.example/x.png", "ftp://a.example/", "javascript:alert(1)", "gopher://a.example/"),
        *("http://", "http:///path", "http://a.example:99999/", "http://a.example:0/"),
        *("http://a.example:x/", "http://user@a.example/", "http://user:secret@a.example/"),
        *("http://a.example\\@b.example/", "http:\\\\a.example/", "http://a b.example/"),
        *("http://a.example/\r\nHost: b", "http://a.example\x00/", " http://a.example/"),
        *("http://[::1", "http://[::1%eth0]/", "http://-a.example/", "http://a..example/"),
        *("http://a%2eexample/", "http://a.example,b.example/", "file:///etc/passwd"),
    ],
)
def test_odd_urls_are_refused(text: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse_web_address(text)
    assert "example" not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/b", "http a.example 81 /b"),
        ("c?d", "http a.example 81 /x/c?d"),
        ("https://b.example/e", "https b.example 443 /e"),
        ("//b.example/e", "http b.example 80 /e"),
    ],
)
def test_redirects_are_resolved(location: str, expected: str) -> None:
    new = parse_web_address("http://a.example:81/x/y").redirected(location)
    assert f"{new.scheme} {new.host} {new.port} {new.target}" == expected


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "data:,x", "ftp://b.example/", "http://["]
)
def test_redirects_never_leave_the_web(location: str) -> None:
    with pytest.raises(SourceError):
        parse_web_address("http://a.example/x").redirected(location)


def test_the_host_header_names_an_unusual_port_and_brackets() -> None:
    assert parse_web_address("https://a.example/").authority == "a.example"
    assert parse_web_address("https://a.example:80/").authority == "a.example:80"
    assert parse_web_address("http://[2606::1]:8080/").authority == "[2606::1]:8080"


@pytest.mark.parametrize(
    ("host", "matches"),
    [
        ("a.example", True),
        ("x.a.example", False),
        ("b.example", False),
        ("x.b.example", True),
        ("x.y.b.example", True),
        ("xb.example", False),
        ("b.example.evil", False),
        ("10.0.0.1", True),
    ],
)
def test_domains(host: str, matches: bool) -> None:
    assert host_matches(host, ("A.example", "*.b.example", "10.0.0.1")) == matches


@pytest.mark.parametrize(
    ("text", "path"),
    [("file:///a/b%20c.png", "/a/b c.png"), ("file://localhost/a", "/a"), ("FILE:///a", "/a")],
)
def test_file_addresses(text: str, path: str) -> None:
    assert parse_file_address(text) == path


@pytest.mark.parametrize("text", ["file://host/a", "file:a", "file:", "file:///a%00b", "file://"])
def test_odd_file_addresses_are_refused(text: str) -> None:
    with pytest.raises(SourceError):
        parse_file_address(text)
