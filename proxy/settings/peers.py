"""Settings that bound what one peer may cost: a client, or an upstream. `model` has all the others."""

from __future__ import annotations

from pydantic import BaseModel, Field

from proxy.settings.route import FROZEN
from proxy.settings.values import Seconds

__all__ = ["PeerSettings"]


class PeerSettings(BaseModel):
    """Limits on peers that misbehave; a healthy one never reaches them."""

    model_config = FROZEN

    cancels_per_minute: int = Field(
        default=12_000,
        ge=100,
        le=100_000_000,
        json_schema_extra={"x-unit": "requests"},
        description=(
            "Requests that the clients of one address may cancel within a minute before their responses begin, in each "
            "worker. Above it, connections that cancel many are ended with ENHANCE_YOUR_CALM, and requests on new ones "
            "wait for 0.1 seconds. A Restate that restarts cancels what it has under way: at most 6,400 requests, the "
            "streams of max_upstream_connections."
        ),
    )
    first_request_timeout: Seconds = Field(
        default=60.0,
        gt=0,
        le=3600,
        description=(
            "How long an HTTP/2 connection of a client may be open without a first request; over HTTP/1.1 it is 10 "
            "seconds. Restate opens one when it has a request. A connection that has had one may be idle for any time."
        ),
    )
    head_timeout: Seconds = Field(
        default=30.0,
        gt=0,
        le=3600,
        description=(
            "How long the head of a request may take from its first octet to its last: nothing else can come on its "
            "connection meanwhile. It is one or two packets."
        ),
    )
    http1_octets_per_second: int = Field(
        default=500,
        ge=0,
        le=1_000_000,
        json_schema_extra={"x-unit": "octets a second"},
        description=(
            "Least rate at which the content of an HTTP/1.1 request may come, after head_timeout and while the sidecar "
            "reads; 0 for any. Restate sends it at once; over HTTP/2, where it streams, there is no such limit."
        ),
    )
    stall_timeout: Seconds = Field(
        default=60.0,
        gt=0,
        le=3600,
        description=(
            "How long octets of an exchange may wait without any progress while more than half of queued_octets is "
            "used; it is ended then. While there is room, and where nothing waits, any time is allowed: Restate is "
            "silent for many minutes."
        ),
    )
    upstream_cancels_per_minute: int = Field(
        default=300,
        ge=10,
        le=100_000_000,
        json_schema_extra={"x-unit": "requests"},
        description=(
            "Cancelled requests that are reset on one upstream connection within a minute; the resets of others are "
            "sent later. A server ends a connection with too many, and all clients share it. Enough to cancel all of a "
            "connection's streams, about 100, three times."
        ),
    )
    max_interim_heads: int = Field(
        default=100,
        ge=1,
        le=100_000,
        json_schema_extra={"x-unit": "heads"},
        description=(
            "Interim heads (1xx, such as 100 and 103) that an upstream may send before its response. "
            "A service sends one or two; more than this would be work without end, so its stream is reset."
        ),
    )
