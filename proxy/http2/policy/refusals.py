"""Why an engine resets a stream whose peer broke a rule, in words that metrics can carry. Pure.

Both engines use the same word for the same section. A section with several faults has the word of the first, in this
order: the fields, the pseudo-fields, the authority, the content length.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "AUTHORITY",
    "CONTENT_LENGTH",
    "FIELD",
    "FLOW_CONTROL",
    "GOING_AWAY",
    "HOST_DIFFERS",
    "PSEUDO_FIELD",
    "SECTION_TOO_LARGE",
    "STREAM_ORDER",
    "TOO_MANY_INTERIM",
    "TOO_MANY_STREAMS",
    "USER_INFO",
]

FIELD: Final = "field"
"""A name or value that must not be sent, one field twice, or a pseudo-field out of place (RFC 9113, 8.2 and 8.3)."""
PSEUDO_FIELD: Final = "pseudo-field"
"""`:method`, `:scheme`, `:path` or `:status` is missing, or has a value that it must not have."""
AUTHORITY: Final = "authority"
"""Neither `:authority` nor `host`, or one that is no host (8.3.1)."""
USER_INFO: Final = "user-info"
"""An authority with a user name (8.3.1)."""
HOST_DIFFERS: Final = "host-differs"
"""`host` beside another `:authority` (8.3.1)."""
CONTENT_LENGTH: Final = "content-length"
"""No length, or not that of the content (8.1.1)."""
SECTION_TOO_LARGE: Final = "section-too-large"
"""More than SETTINGS_MAX_HEADER_LIST_SIZE."""
TOO_MANY_INTERIM: Final = "too-many-interim-heads"
"""More interim heads (1xx) of one response than are taken (`Limits.max_interim_heads`)."""
TOO_MANY_STREAMS: Final = "too-many-streams"
"""More than SETTINGS_MAX_CONCURRENT_STREAMS."""
GOING_AWAY: Final = "going-away"
"""A request after our GOAWAY."""
STREAM_ORDER: Final = "stream-order"
"""A frame that has no place there: trailers that do not end their stream, content before a head (8.1)."""
FLOW_CONTROL: Final = "flow-control"
"""More than the window takes, or a window update that must not be (6.9)."""
