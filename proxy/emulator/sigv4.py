"""AWS Signature Version 4 of the request that federation from AWS signs: GetCallerIdentity of the AWS STS.

The request is the subject token of the token exchange: URL-quoted JSON with `url`, `method` and `headers`. Google sends
it to AWS, which verifies the signature; the emulator verifies it itself.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote_plus, urlsplit

__all__ = ["NotSigned", "SignedRequest", "parse"]

HOST: Final = re.compile(r"sts\.(?P<region>[a-z]{2}(?:-[a-z]+)+-[0-9])\.amazonaws\.com")
QUERY: Final = {"Action": "GetCallerIdentity", "Version": "2011-06-15"}
AUTHORIZATION: Final = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[A-Z0-9]{16,128})/(?P<date>[0-9]{8})/(?P<region>[a-z0-9-]+)/sts/aws4_request"
    r", SignedHeaders=(?P<signed>[a-z0-9;-]+), Signature=(?P<signature>[0-9a-f]{64})"
)
TIME: Final = "%Y%m%dT%H%M%SZ"
NEEDED: Final = frozenset({"authorization", "host", "x-amz-date", "x-goog-cloud-target-resource"})
EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()


class NotSigned(Exception):
    """The subject token is not a correctly signed GetCallerIdentity request. The text quotes nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRequest:
    """A well-formed GetCallerIdentity request whose signature is not verified yet."""

    access_key_id: str
    """The id of the access key that the request names."""
    time: float
    """When it was signed, in seconds since the epoch."""
    target: str
    """The provider that it is for (`x-goog-cloud-target-resource`)."""
    session_token: str | None = field(repr=False)
    """The session token of a temporary key; None without one."""
    _region: str
    _signed: tuple[str, ...]
    _fields: Mapping[str, str] = field(repr=False)
    _query: str
    _signature: str = field(repr=False)

    def verify(self, secret_access_key: str) -> None:
        """Raise NotSigned unless the signature was made with this key."""
        canonical_fields = "".join(f"{name}:{' '.join(self._fields[name].split())}\n" for name in self._signed)
        request = "\n".join(["POST", "/", self._query, canonical_fields, ";".join(self._signed), EMPTY_SHA256])
        stamp = self._fields["x-amz-date"]
        scope = f"{stamp[:8]}/{self._region}/sts/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()])
        key = f"AWS4{secret_access_key}".encode()
        for part in (*scope.split("/"), text):
            key = hmac.digest(key, part.encode(), "sha256")
        if not hmac.compare_digest(key.hex(), self._signature):
            raise NotSigned("SignatureDoesNotMatch")


def parse(subject_token: str) -> SignedRequest:
    """Return the request in a subject token; raises NotSigned unless it has the form that Google documents."""
    request = _object(subject_token)
    fields = _fields(request.get("headers"))
    query = _query(request, fields["host"])
    match = AUTHORIZATION.fullmatch(fields["authorization"])
    if match is None:
        raise NotSigned("its Authorization is not AWS4-HMAC-SHA256 for sts")
    try:
        time = datetime.datetime.strptime(fields["x-amz-date"], TIME).replace(tzinfo=datetime.UTC).timestamp()
    except ValueError:
        raise NotSigned("its x-amz-date is not a time") from None
    region = HOST.fullmatch(fields["host"])
    if region is None or match["region"] != region["region"] or match["date"] != fields["x-amz-date"][:8]:
        raise NotSigned("its credential scope is not that of its host and date")
    signed = tuple(match["signed"].split(";"))
    if list(signed) != sorted(set(signed)) or not {"host", "x-amz-date"} <= set(signed) <= fields.keys():
        raise NotSigned("its SignedHeaders are not sorted, or not there, or lack host and x-amz-date")
    session_token = fields.get("x-amz-security-token")
    if session_token is not None and "x-amz-security-token" not in signed:
        raise NotSigned("its x-amz-security-token is not signed")
    return SignedRequest(
        access_key_id=match["key"],
        time=time,
        target=fields["x-goog-cloud-target-resource"],
        session_token=session_token,
        _region=match["region"],
        _signed=signed,
        _fields=fields,
        _query=query,
        _signature=match["signature"],
    )


def _object(subject_token: str) -> dict[str, Any]:
    try:
        # Go, Java and Rust escape a space as `+`, Python and Node as `%20`; all of them escape a plus as `%2B`.
        request = json.loads(unquote_plus(subject_token, errors="strict"))
    except (ValueError, RecursionError):
        raise NotSigned("it is not URL-quoted JSON") from None
    if not isinstance(request, dict) or not request.keys() <= {"url", "method", "headers", "body"}:
        raise NotSigned("it is not an object with url, method and headers")
    return request


def _fields(headers: object) -> dict[str, str]:
    if not isinstance(headers, list):
        raise NotSigned("its headers are not a list")
    fields: dict[str, str] = {}
    for header in headers:
        match header:
            case {"key": str(key), "value": str(value), **more} if not more and key.lower() not in fields:
                fields[key.lower()] = value
            case _:
                raise NotSigned("a header is not one key with one value")
    if not fields.keys() >= NEEDED:
        raise NotSigned(f"it lacks a header: {', '.join(sorted(NEEDED - fields.keys()))}")
    return fields


def _query(request: Mapping[str, Any], host: str) -> str:
    """Return the canonical query of the request; raises NotSigned unless it is a GetCallerIdentity request."""
    try:
        parts = urlsplit(str(request.get("url")))
    except ValueError:
        raise NotSigned("its url is none") from None
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    right = parts.scheme == "https" and parts.netloc == host and HOST.fullmatch(host) and parts.path in ("", "/")
    if not right or len(pairs) != len(QUERY) or dict(pairs) != QUERY:
        raise NotSigned("its url is not GetCallerIdentity at a regional STS of AWS")
    if request.get("method") != "POST" or request.get("body"):
        raise NotSigned("it is not a POST without a body")
    return "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(pairs))
