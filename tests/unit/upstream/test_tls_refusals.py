"""TLS that one side refuses: the other hears why."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import closing
from typing import cast

import pytest

from proxy.connection.protocol import Http2Protocol
from proxy.emulator import Certificates
from proxy.errors import UpstreamTlsFailed
from proxy.routes import Origin
from proxy.upstream.connector import tls_context
from proxy.upstream.tls import open_tls
from tests.support.peers.sockets import server_context
from tests.unit.upstream.connecting import connector, listening
from tests.unit.upstream.test_tls import Peer


@pytest.mark.asyncio
async def test_a_server_that_is_not_trusted_hears_why_and_its_socket_is_closed(certificates: Certificates) -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=far)
    peer = Peer(server_context(*certificates.server_files("localhost")), reader, writer)
    shaking = asyncio.gather(
        open_tls(cast(Http2Protocol, None), near, tls_context(None), "localhost"),
        peer.shake_hands(),
        return_exceptions=True,
    )
    with closing(writer):
        refused, alert = await shaking
    assert isinstance(refused, ssl.SSLCertVerificationError)
    assert isinstance(alert, ssl.SSLError)
    assert alert.reason == "TLSV1_ALERT_UNKNOWN_CA"
    assert near.fileno() == -1


@pytest.mark.asyncio
async def test_a_server_that_requires_a_certificate_of_its_clients_is_reported(certificates: Certificates) -> None:
    context = server_context(*certificates.server_files("localhost"))
    context.load_verify_locations(certificates.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(context, reader, writer)
        with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
            await peer.shake_hands()
        await peer.send(peer.encrypted(b""))
        await reader.read()

    async with listening(refuse) as port:
        with pytest.raises(UpstreamTlsFailed, match=r"requires a certificate of its clients \(mTLS\)"):
            await connector(upstream_ca=certificates.ca_file).connect(Origin("https", "localhost", port))
