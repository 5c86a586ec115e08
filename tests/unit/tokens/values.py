"""A key, tokens and JWTs for the tests of this room."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from proxy.tokens.model import Token, TokenKey

AUDIENCE = "https://greeter-123.europe-west1.run.app"
KEY = TokenKey(impersonate=None, delegates=(), audience=AUDIENCE)
ATTACHED = "attached@project.iam.gserviceaccount.com"
TARGET = "target@project.iam.gserviceaccount.com"
IMPERSONATED = TokenKey(TARGET, (), AUDIENCE)
START = 1_800_000_000.0


def token_of(key: TokenKey, expires_at: float, serial: int = 0) -> Token:
    return Token(key=key, authorization=b"Bearer t%d" % serial, expires_at=expires_at, principal="me@example.com")


def encode(part: object) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode(part: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def jwt_of(claims: Mapping[str, Any]) -> str:
    return f"{encode({'alg': 'RS256', 'typ': 'JWT'})}.{encode(dict(claims))}.{encode(b'signature-of-google')}"
