"""Which network addresses may be contacted on a stranger's word: global ones, and those that were allowed by name.

A list of URLs is input of unknown origin, and this machine may reach what its author may not: metadata services,
routers, databases. Every address is judged where it is used, so no spelling of a host and no second answer of a name
server leads past it.
"""

import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from dalle_model.errors import UsageError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291, section 2.5.5.1; deprecated, and still routed by some hosts


class AddressRefused(OSError):
    """A connection to this address is refused. An OSError, because connectors expect one."""


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Global addresses and those of ``allowed``."""

    allowed: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "127.0.0.1, 10.1.0.0/16". UsageError names what is no address."""
        networks = []
        for word in text.replace(",", " ").split():
            try:
                networks.append(ipaddress.ip_network(word))
            except ValueError as error:
                raise UsageError(
                    f"ingest.fetch.allow_addresses: {word!r} is no address or network ({error}); give e.g. 10.1.2.3 or 10.1.0.0/16"
                ) from error
        return cls(tuple(networks))

    def permits(self, address: str) -> bool:
        """Whether a numeric address may be contacted; an IPv4 address inside an IPv6 one is looked at as well."""
        try:
            outer = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if any(a in network for a in _layers(outer) for network in self.allowed if network.version == a.version):
            return True
        return all(_is_global(a) for a in _layers(outer))

    def check(self, address: str) -> None:
        """Raise AddressRefused unless the address is permitted."""
        if not self.permits(address):
            raise AddressRefused(f"{address} is not a global address")


def _layers(address: Address) -> Iterator[Address]:
    """The address, or what a translator on the way would make of it: mapped, 6to4, Teredo, NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        yield address
    elif address.ipv4_mapped is not None:
        yield address.ipv4_mapped  # the mapping itself counts as private for Python
    else:
        yield address
        if address.sixtofour is not None:
            yield address.sixtofour
        if address.teredo is not None:
            yield from address.teredo
        if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
            yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def _is_global(address: Address) -> bool:
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def literal(host: str) -> str | None:
    """The numeric address that a host is, however it is spelled ("127.1", "0x7f000001", "2130706433"); None for a name."""
    bare = host.removeprefix("[").removesuffix("]").rstrip(".")
    try:
        return str(ipaddress.ip_address(bare.partition("%")[0]))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(bare)) if bare and " " not in bare else None
    except (OSError, ValueError):
        return None
