"""Tunnels through an HTTP proxy (CONNECT; RFC 9110, 9.3.6): which upstreams need one, and opening it on a socket."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Final

from proxy.errors import UpstreamConnectFailed
from proxy.network.http_proxy import HttpProxy, login_refusal
from proxy.network.no_proxy import is_reached_directly
from proxy.quoting import one_line
from proxy.routes import Origin

__all__ = ["open_tunnel", "tunnels_to"]

_MAX_HEAD_OCTETS: Final = 16 << 10
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})(?: ([^\r\n]*))?\r?\n")
# 1xx heads, of which any number may precede the answer (RFC 9110, 15.2). 101 would be an answer: nothing is upgraded.
_INTERIM_HEADS: Final = re.compile(rb"(?:HTTP/1\.[01] 1(?!01)\d\d[^\n]*\n(?:[^\r\n][^\n]*\n)*\r?\n)+")

_CHALLENGE: Final = re.compile(rb"(?im)^proxy-authenticate:[ \t]*([^\r\n]*)")


def tunnels_to(origin: Origin) -> bool:
    """Return True if an upstream is reached through the proxy, where there is one.

    An `http://` upstream (which is loopback or private), a loopback host and a host in the environment's `no_proxy` are
    not.
    """
    return origin.scheme != "http" and not is_reached_directly(origin.host, origin.port)


async def open_tunnel(connected: socket.socket, proxy: HttpProxy, origin: Origin) -> None:
    """Have the proxy at the other end of a socket connect it with an origin.

    Raises UpstreamConnectFailed with the proxy's answer, and OSError. Who awaits it sets the deadline.
    """
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    target = f"{host}:{origin.port}"
    request = f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n"
    if proxy.authorization is not None:
        request += f"proxy-authorization: {proxy.authorization}\r\n"
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connected, f"{request}\r\n".encode("ascii"))
    head = b""
    named = f"the proxy {proxy} (upstream_proxy)"
    while b"\r\n\r\n" not in head and b"\n\n" not in head:
        read = await loop.sock_recv(connected, 4096)
        head += read
        if interim := _INTERIM_HEADS.match(head):
            head = head[interim.end() :]
        if not read or len(head) > _MAX_HEAD_OCTETS or not b"HTTP/1.".startswith(head[:7]):
            what = "closed the connection before it answered" if not head else "does not answer as an HTTP proxy does"
            raise UpstreamConnectFailed(f"{named} {what}; check upstream_proxy")
    status = _STATUS.match(head)
    if status is None:
        raise UpstreamConnectFailed(f"{named} does not answer as an HTTP proxy does; check upstream_proxy")
    if status[1] == b"407":
        challenges = [value.decode("latin-1") for value in _CHALLENGE.findall(head)]
        form = f"http://USER:PASSWORD@{proxy} into the setting"
        raise UpstreamConnectFailed(f"{named} {login_refusal(challenges, form, has_login=bool(proxy.login))}")
    if not status[1].startswith(b"2"):
        said = one_line(f"{status[1].decode()} {(status[2] or b'').decode('latin-1')}".strip())
        remedy = "see its log" if status[1].startswith(b"5") else "allow it there"
        raise UpstreamConnectFailed(
            f"{named} does not connect to {target} ({said}); {remedy}, or list the host in no_proxy "
            "if this machine reaches it directly"
        )
    # TLS begins with its client, so nothing of the service can stand behind the head.
