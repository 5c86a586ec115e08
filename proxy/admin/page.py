"""The status page: one file, `page.html`, whose script shows `/status` and asks again every two seconds."""

from __future__ import annotations

import base64
import hashlib
import re
from pkgutil import get_data
from typing import Final

__all__ = ["CONTENT_SECURITY_POLICY", "PAGE"]

PAGE: Final = (get_data("proxy.admin", "page.html") or b"").decode()
"""The document. (`importlib.resources` would load ten modules more.)"""


def _hash(tag: str) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    content = found[1] if found is not None else ""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


CONTENT_SECURITY_POLICY: Final = (
    f"default-src 'none'; style-src {_hash('style')}; script-src {_hash('script')}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""For the page: its own style and script by their hashes, requests to the same port, and nothing else."""
