"""Which addresses a page may be read from: public ones, and those that the user allows.

A model chooses the pages, and what it read chooses with it; neither may reach the machines behind
the firewall. A name is resolved once, all its addresses are judged, and the connection goes to one
of them: a name server that answers differently the next time gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from tools.web.rate_limits import Fault

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PORTS = frozenset({80, 443, 8000, 8008, 8080, 8443})


_NEVER_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # the host agent of Azure's machines
        "192.0.0.0/24",  # protocol assignments, a cloud's metadata among them
        "192.88.99.0/24",  # relays into 6to4
        "::/96",  # IPv4 addresses in an old wrapping
        "64:ff9b:1::/48",  # translation into a private network
    )
)


_WRAPPED_IPV4 = ipaddress.ip_network("64:ff9b::/96")


_UNKNOWN_NAME = {socket.EAI_NONAME, socket.EAI_FAIL, socket.EAI_NODATA}


class Refused(Exception):
    """The page cannot be read because of what was asked; the message is for the model."""


def system_addresses(host: str, port: int) -> list[str]:
    """What the system's resolver says."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


@dataclass(frozen=True)
class Addresses:
    """Judges hosts."""

    allow: tuple[str, ...] = ()
    """Networks that may be reached although they are not public, "127.0.0.1/32", on any port."""
    resolve: Callable[[str, int], list[str]] = field(default=system_addresses, repr=False)
    """Name and port to addresses; raises OSError as `socket.getaddrinfo` does."""

    def __post_init__(self) -> None:
        for network in self.allow:
            ipaddress.ip_network(network)

    def pinned(self, host: str, port: int) -> str:
        """The address to connect to.

        Raises:
            Refused: the host does not exist, or one of its addresses may not be reached.
            Fault: the name server does not answer.
        """
        try:
            found = [_address(text) for text in self.resolve(host, port)]
        except socket.gaierror as error:
            if error.errno in _UNKNOWN_NAME:
                raise Refused(f"There is no host {host!r}.") from error
            raise Fault(f"cannot resolve {host!r}: {error}") from error
        except (UnicodeError, ValueError) as error:
            raise Refused(f"{host[:100]!r} is not the name of a host.") from error
        if not found:
            raise Refused(f"There is no host {host!r}.")
        allowed = [ipaddress.ip_network(network) for network in self.allow]
        for address in found:
            if not any(address in network for network in allowed):
                _judge(address, host, port)
        return str(min(found, key=lambda address: address.version))


def is_public(address: Address) -> bool:
    """Whether an address is out in the open, whatever it is wrapped in."""
    inner = _unwrapped(address)
    if inner is not None:
        return is_public(inner)
    hidden = any(address in network for network in _NEVER_PUBLIC)
    local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    return address.is_global and not address.is_multicast and not hidden and not local


def _judge(address: Address, host: str, port: int) -> None:
    if not is_public(address):
        raise Refused(f"{host!r} is not on the public web.")
    if port not in _PORTS:
        raise Refused(f"Port {port} is not one of the web.")


def _address(text: str) -> Address:
    return ipaddress.ip_address(text.partition("%")[0])


def _unwrapped(address: Address) -> Address | None:
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _WRAPPED_IPV4:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour
