"""The keys that verify Google's tokens, for a service that looks at them: of ID tokens, and of IAP's assertions.

::

    www.googleapis.com/oauth2/v1/certs          ID tokens: key id → PEM; Google sends certificates, here it is the key
    www.googleapis.com/oauth2/v3/certs          ID tokens: JSON Web Key Set (RFC 7517)
    www.gstatic.com/iap/verify/public_key       IAP: key id → PEM
    www.gstatic.com/iap/verify/public_key-jwk   IAP: JSON Web Key Set
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any, Final

from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from proxy.emulator.google import Google
from proxy.emulator.responses import web_page

__all__ = ["PublicKeys"]

MAX_AGE_SECONDS: Final = 3600
OTHER_HOST: Final = {"/iap/": "www.googleapis.com", "/oauth2/": "www.gstatic.com"}
"""The host that does not serve paths with this beginning; an address serves all."""


class PublicKeys:
    """The public keys, at www.googleapis.com and www.gstatic.com."""

    def __init__(self, google: Google) -> None:
        def iap() -> dict[str, str]:
            return {google.iap_key.key_id: google.iap_key.public_pem}

        self._documents: Mapping[str, Callable[[], Any]] = {
            "/oauth2/v1/certs": google.certificates,
            "/oauth2/v3/certs": lambda: _key_set(google.certificates()),
            "/iap/verify/public_key": iap,
            "/iap/verify/public_key-jwk": lambda: _key_set(iap()),
        }

    async def handle(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        """Return the response to one request; `expired` has no effect, since it contains no token."""
        document = self._documents.get(request.path)
        other = OTHER_HOST["/iap/" if request.path.startswith("/iap/") else "/oauth2/"]
        if document is None or request.method != "GET" or request.host.partition(":")[0].lower() == other:
            return web_page(404, "There is no such document.")
        return web.json_response(document(), headers={"cache-control": f"public, max-age={MAX_AGE_SECONDS}"})


def _key_set(keys: Mapping[str, str]) -> dict[str, list[dict[str, str]]]:
    return {"keys": [_web_key(key_id, pem) for key_id, pem in keys.items()]}


def _web_key(key_id: str, pem: str) -> dict[str, str]:
    key = serialization.load_pem_public_key(pem.encode())
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        values = {"kty": "RSA", "alg": "RS256", "n": _text(numbers.n), "e": _text(numbers.e)}
    elif isinstance(key, ec.EllipticCurvePublicKey):
        point = key.public_numbers()
        values = {"kty": "EC", "alg": "ES256", "crv": "P-256", "x": _text(point.x, 32), "y": _text(point.y, 32)}
    else:
        raise TypeError(f"there are no keys of the type {type(key).__name__}")
    return {"kid": key_id, "use": "sig", **values}


def _text(number: int, octets: int = 0) -> str:
    return (
        base64.urlsafe_b64encode(number.to_bytes(octets or (number.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()
    )
