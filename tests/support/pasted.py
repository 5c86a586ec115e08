"""What people paste into the wrong place."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Final

__all__ = ["PASTED", "told_of"]

_BODY: Final = base64.b64encode(bytes(range(256)) * 5).decode()
_PEM: Final = f"-----BEGIN PRIVATE KEY-----\n{_BODY}\n-----END PRIVATE KEY-----\n"
_KEY: Final = {
    "type": "service_account",
    "private_key_id": "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567",
    "private_key": _PEM,
    "client_email": "a@b.iam.gserviceaccount.com",
}

PASTED: Final[Mapping[str, str]] = {
    "a key file": json.dumps(_KEY, indent=2),
    "a key file on one line": json.dumps(_KEY),
    "a key file in base64": base64.b64encode(json.dumps(_KEY).encode()).decode(),
    "a private key": _PEM,
    "a line of a private key": _BODY[64:128],
    "a JWT": "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJhdWQiOiJodHRwczovL3N2YyJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ",
    "a bearer token": "Bearer ya29.a0AfH6SMBxK3jD8fQ2pLr7TnV4wY6zB1cE5gH9",
    "an access token": "ya29.a0AfH6SMBxK3jD8fQ2pLr7TnV4wY6zB1cE5gH9",
    "a client secret": "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",
    "a random secret": "k3J9xQ2mZ7pL4vT8wR1nB6yH5cF0dG3s",
    "a URL with a login": "https://admin:correct-horse@svc.run.app/base",
    "a login": "admin:correct-horse-battery",
    "an e-mail with blanks": "someone whose name @example.com",
    "a few lines": "first line of it\nsecond line of it",
}


def told_of(pasted: str, text: str) -> list[str]:
    """Return the pieces of what was pasted that are in the text; a piece has eight characters."""
    harmless = (
        "BEGIN PRIVATE KEY",
        ' "private"',
        "svc.run.app",
        "https://",
        ".iam.gserviceaccount.com",
        "service_account",
        "@example.com",
    )
    pieces = {pasted[start : start + 8] for start in range(len(pasted) - 7)}
    return sorted(piece for piece in pieces if piece in text and not any(piece in known for known in harmless))
