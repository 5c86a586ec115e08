"""The metadata servers of AWS (IMDSv2) and Azure, where a federated workload gets its subject token."""

from __future__ import annotations

import datetime
import re
import secrets
from typing import Final

from aiohttp import web

from proxy.emulator.google import Google
from proxy.emulator.responses import oauth_error, web_page

__all__ = ["AwsMetadata", "AzureMetadata"]

REGION: Final = "eu-west-1"
ROLE: Final = "emulated-role"
SUBJECT: Final = "00000000-0000-4000-8000-00000000e0e0"
ISO: Final = "%Y-%m-%dT%H:%M:%SZ"
SESSION_TOKEN_FIELD: Final = "X-aws-ec2-metadata-token"  # noqa: S105 – a name
SESSION_LIFETIME_FIELD: Final = "X-aws-ec2-metadata-token-ttl-seconds"
MAX_SESSION_SECONDS: Final = 21_600
API_VERSION: Final = re.compile(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}")


class AwsMetadata:
    """AWS instance metadata, version 2: requires a session token, which is refused to forwarded requests."""

    def __init__(self, google: Google) -> None:
        self._google = google
        self._sessions: dict[str, float] = {}

    async def handle(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        """Return the response to one request."""
        if "X-Forwarded-For" in request.headers:
            return web_page(403, "Forwarded requests (X-Forwarded-For) are refused.")
        if request.path == "/latest/api/token":
            return self._session(request)
        if request.method != "GET":
            return web_page(405, "Only GET is allowed.")
        values = request.headers.getall(SESSION_TOKEN_FIELD, [])
        if len(values) != 1 or self._sessions.get(values[0], 0.0) <= self._google.clock():
            return web_page(401, "A session token is required (IMDSv2).")
        return self._value(request.path.removeprefix("/latest/meta-data/"), expired=expired)

    def _session(self, request: web.BaseRequest) -> web.Response:
        if request.method != "PUT":
            return web_page(405, "Only PUT is allowed.")
        seconds = request.headers.get(SESSION_LIFETIME_FIELD, "")
        if not re.fullmatch(r"[0-9]{1,5}", seconds) or not 0 < int(seconds) <= MAX_SESSION_SECONDS:
            return web_page(400, f"{SESSION_LIFETIME_FIELD} must be from 1 to {MAX_SESSION_SECONDS}.")
        token = secrets.token_urlsafe(40)
        self._sessions[token] = self._google.clock() + int(seconds)
        self._google.issued_secrets.add(token)
        return web.Response(text=token, headers={SESSION_LIFETIME_FIELD: seconds})

    def _value(self, path: str, *, expired: bool) -> web.Response:
        if path == "placement/availability-zone":
            return web.Response(text=f"{REGION}b")
        if path in ("iam/security-credentials", "iam/security-credentials/"):
            return web.Response(text=ROLE)
        if path != f"iam/security-credentials/{ROLE}":
            return web_page(404, "There is no such path, or no such role.")
        aws = self._google.federation.aws
        key = aws.role_key(f"{ROLE}-of-yesterday", lifetime_seconds=-3600) if expired else aws.role_key(ROLE)
        expiration = datetime.datetime.fromtimestamp(key.expires_at or 0, datetime.UTC).strftime(ISO)
        return web.json_response(
            {
                "Code": "Success",
                "Type": "AWS-HMAC",
                "AccessKeyId": key.access_key_id,
                "SecretAccessKey": key.secret_access_key,
                "Token": key.session_token,
                "Expiration": expiration,
            }
        )


class AzureMetadata:
    """Azure's instance metadata: the tokens of managed identities."""

    def __init__(self, google: Google) -> None:
        self._google = google

    async def handle(self, request: web.BaseRequest, *, expired: bool) -> web.Response:
        """Return the response to one request."""
        if request.path != "/metadata/identity/oauth2/token":
            return web_page(404, "There is no such path.")
        if request.method != "GET":
            return web_page(405, "Only GET is allowed.")
        # gcloud writes `"Metadata": "True"` into credential files.
        values = [value.lower() for value in request.headers.getall("Metadata", [])]
        if values != ["true"] or "X-Forwarded-For" in request.headers:
            return oauth_error("invalid_request", "Required metadata header not specified")
        resource = request.query.get("resource", "")
        if not API_VERSION.fullmatch(request.query.get("api-version", "")) or not resource:
            return oauth_error("invalid_request", "The api-version or the resource is missing or malformed")
        azure = self._google.federation.azure
        if resource not in azure.accepts:
            return oauth_error("invalid_resource", "The resource principal was not found in the tenant")
        lifetime = -3600 if expired else 3600
        token = azure.token(SUBJECT, audience=resource, lifetime_seconds=lifetime)
        # Azure sends its numbers as strings.
        body = {"access_token": token, "expires_in": str(max(0, lifetime)), "resource": resource}
        return web.json_response({**body, "token_type": "Bearer"})
