"""Settings that bound what one peer may cost: a client, or an upstream. `model` has all the others."""

from __future__ import annotations

from pydantic import BaseModel, Field

from proxy.settings.route import FROZEN

__all__ = ["PeerSettings"]


class PeerSettings(BaseModel):
    """Limits on peers that misbehave; a healthy one never reaches them."""

    model_config = FROZEN

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
