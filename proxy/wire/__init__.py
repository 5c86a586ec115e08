"""One HTTP/2 connection on a transport, and what a connection and an exchange are to each other.

It stands between the rooms `downstream`, `upstream` and `relay`, of which the first two do not know each other, and
`http2`, which has no IO.
"""

from __future__ import annotations

from proxy.wire.budget import Budget
from proxy.wire.protocol import FrameProtocol
from proxy.wire.sides import Channel, Exchanges, Sink, StreamSource

__all__ = ["Budget", "Channel", "Exchanges", "FrameProtocol", "Sink", "StreamSource"]
