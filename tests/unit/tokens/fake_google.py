"""A Google whose answers a test can script, and faults for it."""

from __future__ import annotations

import asyncio
import base64
import itertools
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.unit.tokens.values import ATTACHED, decode, jwt_of

CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"


class Names(AbstractResolver):
    """DNS in which only some names exist, each on a port of its own."""

    def __init__(self, places: Mapping[str, int]) -> None:
        self._places = dict(places)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        del port, family
        if host not in self._places:
            raise OSError(None, "unknown name")
        place = ResolveResult(
            hostname=host, host="127.0.0.1", port=self._places[host], family=socket.AF_INET, proto=0, flags=0
        )
        return [place]

    async def close(self) -> None:
        return None


Fault = Callable[[web.Request], Awaitable[web.StreamResponse]]

GOOGLE_NAMES = ("oauth2.googleapis.com", "iamcredentials.googleapis.com", "sts.googleapis.com")


class FakeGoogle:
    """Metadata server, token endpoints and IAM. It refuses what Google would refuse.

    `proxy.emulator` does not replace it here, for two reasons. Some fifty tests script an answer that is not Google's:
    a captive portal, a redirect, foreign JSON, an endless or a broken answer; the emulator has the failures of Google.
    And it reads Google's protocol independently of the emulator, so that an error of the emulator shows.
    Each source of credentials is tested against the emulator in tests/integration/test_credentials.py.

    `calls` holds (host, path) of every request, `secrets` every secret that was handed out or handed in.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.secrets: set[str] = set()
        self.faults: dict[str, list[Fault]] = {}
        self.life = 3600.0
        self.attached: str | None = ATTACHED
        self.metadata_knows_format = True
        self.quota_projects: list[str | None] = []
        self.keys: dict[str, rsa.RSAPublicKey] = {}
        self.users: dict[str, str] = {}
        self.subject_tokens: dict[str, str] = {}
        self.accounts: set[str] = set()
        self.may_impersonate: set[tuple[str, str]] = set()
        self._access: dict[str, str] = {}
        self._serial = itertools.count()
        self._runners: list[web.AppRunner] = []
        self.port = 0
        self.metadata_port = 0

    async def start(self, tls: ssl.SSLContext) -> None:
        self.port = await self._serve(self._answer, tls)
        self.metadata_port = await self._serve(self._answer_metadata, None)

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    def names(self) -> Names:
        plain = dict.fromkeys(("metadata.google.internal", "localhost"), self.metadata_port)
        return Names({**dict.fromkeys(GOOGLE_NAMES, self.port), **plain})

    def break_next(self, path_end: str, fault: Fault) -> None:
        """Let the next call whose path ends so meet `fault`."""
        self.faults.setdefault(path_end, []).append(fault)

    def allow_impersonation(self, *pairs: tuple[str, str]) -> None:
        """Create the second account of each pair, and let the first one impersonate it."""
        self.accounts |= {account for _, account in pairs}
        self.may_impersonate |= set(pairs)

    def revoke_access_tokens(self) -> None:
        self._access.clear()

    def called(self, path_end: str) -> int:
        return sum(path.endswith(path_end) for _, path in self.calls)

    async def _serve(self, handler: Fault, tls: ssl.SSLContext | None) -> int:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        port = runner.addresses[0][1]
        assert isinstance(port, int)
        return port

    async def _meet_fault(self, request: web.Request) -> web.StreamResponse | None:
        self.calls.append((request.host, request.path))
        for path_end, faults in self.faults.items():
            if request.path.endswith(path_end) and faults:
                return await faults.pop(0)(request)
        return None

    def _secret(self, value: str) -> str:
        self.secrets.add(value)
        return value

    def _id_token(self, audience: str, email: str) -> str:
        now = time.time()
        claims = {"iss": "https://accounts.google.com", "aud": audience, "email": email, "exp": int(now + self.life)}
        return self._secret(jwt_of(claims | {"jti": next(self._serial)}))

    def _access_token(self, principal: str) -> str:
        token = self._secret(f"ya29.access-{next(self._serial)}-of-somebody")
        self._access[token] = principal
        return token

    # The metadata server

    async def _answer_metadata(self, request: web.Request) -> web.StreamResponse:
        faulty = await self._meet_fault(request)
        if faulty is not None:
            return faulty
        headers = {"Metadata-Flavor": "Google"}
        if request.headers.get("Metadata-Flavor") != "Google" or "X-Forwarded-For" in request.headers:
            return web.Response(status=403, headers=headers)
        prefix = "/computeMetadata/v1/instance/service-accounts/default/"
        if request.method != "GET" or not request.path.startswith(prefix) or self.attached is None:
            return web.Response(status=404, headers=headers)
        match request.path.removeprefix(prefix):
            case "identity":
                kind = request.query.get("format")
                if not request.query.get("audience") or (kind is not None and not self.metadata_knows_format):
                    return web.Response(status=400, headers=headers)
                return web.Response(text=self._id_token(request.query["audience"], self.attached), headers=headers)
            case "token":
                answer = {"access_token": self._access_token(self.attached), "expires_in": 3599, "token_type": "Bearer"}
                return web.json_response(answer, headers=headers)
            case "email":
                return web.Response(text=self.attached, headers=headers)
        return web.Response(status=404, headers=headers)

    # googleapis.com

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        faulty = await self._meet_fault(request)
        if faulty is not None:
            return faulty
        if request.method != "POST" or request.headers.get("Metadata-Flavor"):
            return web.Response(status=405)
        match request.host, request.path:
            case "oauth2.googleapis.com", "/token":
                return self._grant(await self._form(request))
            case "sts.googleapis.com", "/v1/token":
                return self._exchange(await self._form(request))
            case "iamcredentials.googleapis.com", path:
                return await self._iam(request, path)
        return web.Response(status=404)

    async def _form(self, request: web.Request) -> dict[str, str]:
        assert request.content_type == "application/x-www-form-urlencoded"
        return dict(parse_qsl(await request.text(), strict_parsing=True))

    def _grant(self, form: dict[str, str]) -> web.Response:
        if form["grant_type"] == "refresh_token":
            self.secrets |= {form["refresh_token"], form["client_secret"]}
            user = self.users.get(form["refresh_token"])
            if user is None:
                return oauth_error("invalid_grant", "Token has been expired or revoked.")
            return web.json_response({"access_token": self._access_token(user), "expires_in": 3599})
        assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
        assertion = self._secret(form["assertion"])
        header, payload, signature = assertion.split(".")
        claims = decode(payload)
        account = claims["iss"]
        if account not in self.keys:
            return oauth_error("invalid_grant", "Invalid grant: account not found")
        try:
            self.keys[account].verify(
                base64.urlsafe_b64decode(signature + "=="),
                f"{header}.{payload}".encode(),
                padding.PKCS1v15(),
                hashes.SHA256(),
            )
        except InvalidSignature:
            return oauth_error("invalid_grant", "Invalid JWT Signature.")
        assert decode(header)["alg"] == "RS256"
        assert claims["aud"] == "https://oauth2.googleapis.com/token"
        assert claims["iat"] <= time.time() + 1
        assert claims["exp"] - claims["iat"] <= 3600
        if "target_audience" in claims:
            return web.json_response({"id_token": self._id_token(claims["target_audience"], account)})
        assert claims["scope"] == CLOUD_PLATFORM
        return web.json_response({"access_token": self._access_token(account), "expires_in": 3599})

    def _exchange(self, form: dict[str, str]) -> web.Response:
        if form["grant_type"] == "refresh_token":
            self.secrets.add(form["refresh_token"])
            user = self.users.get(form["refresh_token"])
            if user is None:
                return oauth_error("invalid_grant", "expired")
            return web.json_response({"access_token": self._access_token(user), "expires_in": 3599})
        assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:token-exchange"
        assert form["requested_token_type"] == "urn:ietf:params:oauth:token-type:access_token"
        assert form["scope"] in (CLOUD_PLATFORM, "https://www.googleapis.com/auth/iam")
        self.secrets.add(form["subject_token"])
        principal = self.subject_tokens.get(form["subject_token"])
        if principal is None:
            return oauth_error("invalid_grant", "The subject token is not valid.")
        return web.json_response(
            {"access_token": self._access_token(principal), "expires_in": 3599, "token_type": "Bearer"}
        )

    async def _iam(self, request: web.Request, path: str) -> web.Response:
        self.quota_projects.append(request.headers.get("x-goog-user-project"))
        account, _, method = path.removeprefix("/v1/projects/-/serviceAccounts/").partition(":")
        principal = self._access.get(request.headers.get("Authorization", "").removeprefix("Bearer "))
        if principal is None:
            return api_error(401, "Request had invalid authentication credentials.", "ACCESS_TOKEN_EXPIRED")
        if account not in self.accounts:
            return api_error(404, f"Not found; Gaia id not found for email {account}")
        body = await request.json()
        self.bodies.append(body)
        for delegate in body.get("delegates") or []:  # google-auth sends null
            name = delegate.removeprefix("projects/-/serviceAccounts/")
            assert name != delegate
            if (principal, name) not in self.may_impersonate:
                return api_error(403, "Permission denied on a delegate", "IAM_PERMISSION_DENIED")
            principal = name
        if (principal, account) not in self.may_impersonate:
            permission = "getOpenIdToken" if method == "generateIdToken" else "getAccessToken"
            text = f"Permission 'iam.serviceAccounts.{permission}' denied on resource (or it may not exist)."
            return api_error(403, text, "IAM_PERMISSION_DENIED")
        if method == "generateAccessToken":
            assert body["scope"] == [CLOUD_PLATFORM]
            until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
            return web.json_response({"accessToken": self._access_token(account), "expireTime": until})
        assert method == "generateIdToken"
        assert body["includeEmail"] is True
        if not body["audience"]:
            return api_error(400, "Request contains an invalid argument.")
        return web.json_response({"token": self._id_token(body["audience"], account)})


def oauth_error(code: str, description: str, status: int = 400) -> web.Response:
    return web.json_response({"error": code, "error_description": description}, status=status)


def api_error(status: int, message: str, reason: str = "") -> web.Response:
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}] if reason else []
    return web.json_response({"error": {"code": status, "message": message, "details": details}}, status=status)


def answers(status: int, text: str = "", **headers: str) -> Fault:
    """Return a fault: this answer instead of the right one."""

    async def fault(request: web.Request) -> web.StreamResponse:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, text=text, headers=fields)

    return fault


def metadata_answers(status: int, text: str = "") -> Fault:
    return answers(status, text, Metadata_Flavor="Google")


def error_answer(response: Callable[[], web.Response]) -> Fault:
    async def fault(request: web.Request) -> web.StreamResponse:
        return response()

    return fault


async def resets(request: web.Request) -> web.StreamResponse:
    """A fault: the connection is broken off."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def says_nothing(request: web.Request) -> web.StreamResponse:
    """A fault: no answer as long as anybody waits."""
    await asyncio.Event().wait()
    raise AssertionError


def silent_and_sets(asked: asyncio.Event) -> Fault:
    async def silent(request: Any) -> Any:
        asked.set()
        return await says_nothing(request)

    return silent
