"""What Restate expects of a deployment (restate 1.7, service-client and invoker).

* `GET {prefix}/discover` asks for the manifest. A person waits for it and sees the answer, body included.
* `POST {prefix}/invoke/{service}/{handler}` runs a handler. Nobody sees the body of a failed one.
* `POST {prefix}/serdes/…` serves the UI. It is no discovery: a UI can wait and repeat.
"""

from __future__ import annotations

__all__ = ["is_discovery"]


def is_discovery(method: bytes, path: bytes) -> bool:
    """Return whether this is a discovery; `path` may have a prefix and a query."""
    return method == b"GET" and path.partition(b"?")[0].endswith(b"/discover")
