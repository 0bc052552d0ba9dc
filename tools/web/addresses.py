"""Decides which addresses a page may be read from: public ones, and those that the user allows.

A model chooses the pages, influenced by what it has read; it must not reach machines behind the
firewall. A host name is resolved once, all its addresses are checked, and the connection goes to
one of them: a name server that changes its answer afterwards (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from tools.web.rate_limits import AttemptFailed

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_WEB_PORTS = frozenset({80, 443, 8000, 8008, 8080, 8443})
_NEVER_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # the host agent of Azure's machines
        "192.0.0.0/24",  # protocol assignments, a cloud's metadata among them
        "192.88.99.0/24",  # relays into 6to4
        "::/96",  # IPv4 addresses in an obsolete embedding
        "64:ff9b:1::/48",  # translation into a private network
    )
)
"""Networks that `ipaddress` takes for public ones."""
_EMBEDDED_IPV4 = ipaddress.ip_network("64:ff9b::/96")
_UNKNOWN_HOST = {socket.EAI_NONAME, socket.EAI_FAIL, socket.EAI_NODATA}


class Refused(Exception):
    """The page cannot be read because of the request itself; the message is for the model."""


def resolve_host(host: str, port: int) -> list[str]:
    """Resolve a host with the system's resolver."""
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in entries]


@dataclass(frozen=True)
class AddressPolicy:
    """Resolves hosts and checks their addresses."""

    allow: tuple[str, ...] = ()
    """Networks that may be reached although they are not public, "127.0.0.1/32", on any port."""
    resolver: Callable[[str, int], list[str]] = field(default=resolve_host, repr=False)
    """Host and port to addresses; raises OSError as `socket.getaddrinfo` does."""

    def __post_init__(self) -> None:
        for network in self.allow:
            ipaddress.ip_network(network)

    def resolve(self, host: str, port: int) -> str:
        """Return the address to connect to.

        Raises:
            Refused: the host does not exist, or one of its addresses may not be reached.
            AttemptFailed: the name server does not answer.
        """
        try:
            addresses = [_parse_address(text) for text in self.resolver(host, port)]
        except socket.gaierror as error:
            if error.errno in _UNKNOWN_HOST:
                raise Refused(f"There is no host {host!r}.") from error
            raise AttemptFailed(f"cannot resolve {host!r}: {error}") from error
        except (UnicodeError, ValueError) as error:
            raise Refused(f"{host[:100]!r} is not the name of a host.") from error
        if not addresses:
            raise Refused(f"There is no host {host!r}.")
        allowed = [ipaddress.ip_network(network) for network in self.allow]
        for address in addresses:
            if not any(address in network for network in allowed):
                _check_public(address, host, port)
        return str(min(addresses, key=lambda address: address.version))


def is_public(address: Address) -> bool:
    """Return True if an address, or the one that it embeds, is on the public internet."""
    embedded = _embedded_address(address)
    if embedded is not None:
        return is_public(embedded)
    hidden = any(address in network for network in _NEVER_PUBLIC)
    local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    return address.is_global and not address.is_multicast and not hidden and not local


def _check_public(address: Address, host: str, port: int) -> None:
    if not is_public(address):
        raise Refused(f"{host!r} is not on the public web.")
    if port not in _WEB_PORTS:
        raise Refused(f"Port {port} is not one of the web.")


def _parse_address(text: str) -> Address:
    return ipaddress.ip_address(text.partition("%")[0])


def _embedded_address(address: Address) -> Address | None:
    """Return the IPv4 address inside an IPv6 one; None if there is none."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _EMBEDDED_IPV4:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour
