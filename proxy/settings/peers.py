"""Settings that bound what one peer may cost: a client, or an upstream. `model` has all the others."""

from __future__ import annotations

from pydantic import BaseModel, Field

from proxy.settings.route import FROZEN

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
