"""Which addresses the media fetcher may connect to.

Ranges are those of the IANA special-purpose address registries (RFC 6890 and its updates), plus the
addresses under which clouds serve their machines' secrets.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

Address = IPv4Address | IPv6Address

_METADATA = {
    ip_address(text)
    for text in (
        "169.254.169.254",  # most clouds
        "100.100.100.200",  # Alibaba Cloud
        "168.63.129.16",  # Azure
        "192.0.0.192",  # Oracle Cloud
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google Cloud
    )
}
_PRIVATE = [
    ip_network(text)
    for text in (
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by a carrier's customers
        "127.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "::1/128",
        "fc00::/7",
    )
]
_NEVER = [
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "169.254.0.0/16",  # link-local
        "192.0.0.0/24",
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
        "2001::/23",  # protocols, Teredo among them
        "2001:db8::/32",
        "3fff::/20",
    )
]
_GLOBAL_IPV6 = ip_network("2000::/3")
_NAT64 = ip_network("64:ff9b::/96")
_TRANSLATED = ip_network("::ffff:0:0:0/96")  # RFC 2765
_6TO4 = ip_network("2002::/16")


def may_connect(address: Address, allow_private: bool) -> bool:
    """Whether the fetcher may connect to an address.

    Args:
        address: Where a name has been resolved to. IPv6 forms that carry an IPv4 address (mapped,
            translated, NAT64, 6to4) are judged by that one.
        allow_private: Also admit loopback, private, unique-local and shared addresses; never
            link-local, metadata, multicast, unspecified or reserved ones.
    """
    if isinstance(address, IPv6Address):
        inner = _carried_ipv4(address)
        if inner is not None:
            return may_connect(inner, allow_private)
        address = IPv6Address(int(address))  # without a zone
    if address in _METADATA or any(address in network for network in _NEVER):
        return False
    if any(address in network for network in _PRIVATE):
        return allow_private
    return isinstance(address, IPv4Address) or address in _GLOBAL_IPV6


def _carried_ipv4(address: IPv6Address) -> IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64 or address in _TRANSLATED:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    if address in _6TO4:
        return IPv4Address(int(address) >> 80 & 0xFFFF_FFFF)
    return None
