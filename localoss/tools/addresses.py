"""Which addresses of the network pages may be fetched from: public ones, and what the user allowed."""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from localoss.errors import LocalossError, UsageError

if TYPE_CHECKING:
    import httpx2

_PORTS = {"http": 80, "https": 443}


class AddressRefused(LocalossError):
    """An address that isn't fetched from, and why."""


def split(url: str) -> tuple[str, str, int]:
    """Scheme, host and port. Raises: AddressRefused for what is no address of a page."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise AddressRefused(f"{url[:200]!r} is no address") from None
    if parts.scheme not in _PORTS or not host:
        raise AddressRefused(f"{url[:200]!r} is no address of a page; it begins with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise AddressRefused("an address with a password in it isn't fetched")
    return parts.scheme, host, port or _PORTS[parts.scheme]


def allowed_host(text: str) -> str:
    """`text`, as HOST or HOST:PORT, as it is compared. Raises: UsageError."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.path:
        raise UsageError(f"--web-allow is {text!r}; give a host, or a host and a port: wiki.local:8080")
    return host if port is None else f"{host}:{port}"


def resolve(host: str, port: int, allowed: Collection[str] = ()) -> str:
    """The address to connect to, which was looked at: nothing resolves the name again.

    allowed: hosts, or hosts and ports, that may have private addresses. Raises: AddressRefused if any
    address of the host is private, LocalossError if it has none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise LocalossError(f"{host} can't be found ({getattr(error, 'strerror', None) or error})") from None
    addresses = [str(entry[4][0]) for entry in found]
    if host not in allowed and f"{host}:{port}" not in allowed:
        for address in addresses:
            if not is_public(address):
                raise AddressRefused(
                    f"{host} is at {address}, an address that isn't public: it isn't asked "
                    f"unless --web-allow {host} is given"
                )
    return addresses[0]


def direct(request: "httpx2.Request", address: str) -> None:
    """Have `request` go to an address that was looked at, under the name of its host."""
    url = request.url
    request.headers["Host"] = url.netloc.decode("ascii")
    name = url.raw_host.decode("ascii").rstrip(".")
    request.extensions = {**request.extensions, "sni_hostname": name}
    request.url = url.copy_with(host=address)


def connect_to_public(allowed: Collection[str]) -> "Callable[[httpx2.Request], Awaitable[None]]":
    """What an asynchronous client does before each request, so that none goes to this network.

    allowed: see resolve. It raises as resolve does.
    """

    async def before(request: "httpx2.Request") -> None:
        _, host, port = split(str(request.url))
        direct(request, await asyncio.to_thread(resolve, host, port, allowed))

    return before


def is_literal(host: str) -> bool:
    """Whether a host is an address itself, rather than a name."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public network's, whatever it is wrapped in."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):  # translated to IPv4
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        # All that was given out lies in here. What doesn't are older forms of private addresses, and of IPv4
        # within IPv6, ::1 and :: among them.
        if ip not in ipaddress.ip_network("2000::/3"):
            return False
    return ip.is_global and not ip.is_multicast
