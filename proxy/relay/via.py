"""Which sidecars a request has passed through, and when that is a loop. Pure.

Each request that goes upstream gets a `via` line (RFC 9110, 7.6.3) with the name of this sidecar. All its workers have
the same name; every other sidecar, and every other start of this one, has a different one. So a request that comes back
is recognised at once, and one that circles between replicas after a few of them.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.errors import LoopDetected
from proxy.http2.events import FieldLine

__all__ = ["check", "sidecar_name", "via_line"]

_NAME: Final = re.compile(rb"cloudrun-sidecar-[0-9a-f]{16}")

_MOST_SIDECARS: Final = 4
"""How many other sidecars a request may have passed through; one sidecar calling another is rare."""


def sidecar_name(random_octets: bytes) -> bytes:
    """Return the name of a sidecar, made of eight random octets."""
    return b"cloudrun-sidecar-" + random_octets.hex().encode()


def via_line(http_version: bytes, name: bytes) -> FieldLine:
    """Return the line that says that the sidecar `name` got a request in this version (`2.0`, `1.1`)."""
    return (b"via", http_version + b" " + name, False)


def check(values: list[bytes], name: bytes) -> None:
    """Raise LoopDetected if a request with these `via` values must not be forwarded by the sidecar `name`."""
    passed: list[bytes] = _NAME.findall(b",".join(values))
    if name in passed:
        raise LoopDetected(
            "this request has been here before: the url of a route leads back to the sidecar itself; set it to the "
            "Cloud Run service (https://….run.app)"
        )
    if len(passed) > _MOST_SIDECARS:
        raise LoopDetected(
            f"this request has passed through {len(passed)} sidecars: the urls of their routes lead to each other; "
            "set them to the Cloud Run service (https://….run.app)"
        )
