"""Calls to Restate's admin API: what Restate has, and registrations.

Every failure is an `AdminFailure` with one sentence: what is wrong and what to do. The token of the admin API, and the
headers of deployments, are in none of them, even if an answer repeats them.
"""

from __future__ import annotations

import json
import os
import re
import ssl
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiohttp

from proxy.deployments.records import (
    Deployment,
    Registered,
    Service,
    read_deployment,
    read_registered,
    read_service,
)
from proxy.deployments.target import may_be_secret
from proxy.exit_codes import ExitCode
from proxy.quoting import one_line, text_of

__all__ = ["AdminFailure", "RestateAdmin"]

_Read = TypeVar("_Read")

_CONNECT_SECONDS: Final = 5.0
_MOST_OCTETS: Final = 64 << 20
"""Of an answer: schemas of many services are large."""
_MOST_CHARACTERS: Final = 1_500
_LEAST_SECRET: Final = 4
"""Characters; of a shorter value nothing would be left of a sentence."""

_DEPLOYMENT_EXISTS: Final = "META0004"
_DISCOVERY_FAILED: Final = "META0003"
_NOT_HTTP2: Final = "META0014"
_NO_ANSWER: Final = "error when calling"
"""Restate's words for a failed discovery without a response (`got status code …` if there is one)."""
_ERROR_PREFIX: Final = re.compile(r"^(?:\[META\d+\]\s*)+")

_ERRNO: Final = re.compile(r"\[Errno ([0-9]+)\]")

_TOKEN: Final = "the variable RESTATE_AUTH_TOKEN or the file of --restate-token-file has it"  # noqa: S105 - no token


class AdminFailure(Exception):
    """Restate's admin API did not do what it was asked to do; `str()` is the sentence for a person."""

    def __init__(self, text: str, exit_code: ExitCode) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        """SETTINGS_UNUSABLE if the same command fails again until it, or a token, is changed; else FAILED."""


class RestateAdmin:
    """Restate's admin API at a URL; an async context manager. Redirects are not followed, they would get the token.

    `timeout_seconds` is the deadline of one call, a discovery included. `token` is sent as a bearer token. `set_by` is
    what sets the URL, in the words of a sentence.
    """

    def __init__(self, url: str, token: str | None, timeout_seconds: float, *, set_by: str = "--restate-admin") -> None:
        self.url = url
        self._where = f"{set_by} says where it is"
        self._token = token
        headers = {"accept": "application/json"} | ({} if token is None else {"authorization": f"Bearer {token}"})
        self._timeout_seconds = timeout_seconds
        timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=_CONNECT_SECONDS)
        self._http = aiohttp.ClientSession(headers=headers, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def deployments(self) -> list[Deployment]:
        """Return all deployments that Restate has. Raises AdminFailure."""
        _, data = await self._call("GET", "/deployments")
        return self._read(lambda: [read_deployment(one) for one in data["deployments"]])

    async def services(self) -> dict[str, Service]:
        """Return the newest revision of every service that Restate has, by name. Raises AdminFailure."""
        _, data = await self._call("GET", "/services")
        return self._read(lambda: {service.name: service for service in map(read_service, data["services"])})

    async def register(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        force: bool,
        breaking: bool,
        http1: bool,
        dry_run: bool,
        proxy: str | None = None,
    ) -> Registered:
        """Register a deployment, or with `dry_run` only discover it; return what Restate answers.

        Without `force`, a deployment that Restate has is left as it is and returned. With `http1` Restate calls it over
        HTTP/1.1. `proxy` is the URL of the sidecar if Restate reaches the deployment only with it as its proxy. Raises
        AdminFailure.
        """
        wish: dict[str, Any] = {"uri": url, "force": force, "dry_run": dry_run}
        if headers:
            wish["additional_headers"] = dict(headers)
        if http1:
            wish["use_http_11"] = True
        if breaking:  # Servers before 1.6 do not know the word.
            wish["breaking"] = True
        status, data = await self._call("POST", "/deployments", wish, proxy)
        return self._read(lambda: read_registered(data, status))

    async def _call(
        self, method: str, path: str, wish: Mapping[str, Any] | None = None, proxy: str | None = None
    ) -> tuple[int, Any]:
        try:
            async with self._http.request(method, self.url + path, json=wish, allow_redirects=False) as response:
                status, body = response.status, bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > _MOST_OCTETS:
                        raise self._not_restate(f"an answer of more than {_MOST_OCTETS >> 20} MiB")
        except TimeoutError:
            what = f"Restate's admin API at {self.url} did not answer within {self._timeout_seconds:g} s; {self._where}"
            raise AdminFailure(what, ExitCode.FAILED) from None
        except aiohttp.ClientResponseError:
            raise self._not_restate("an answer that cannot be read") from None
        except (aiohttp.ClientError, OSError) as exc:
            reason = one_line(_reason(exc))
            what = f"Restate's admin API cannot be reached at {self.url} ({reason}): is Restate running? {self._where}"
            raise AdminFailure(what, ExitCode.FAILED) from None
        if status not in (200, 201):
            raise self._refusal(status, body, wish, proxy)
        try:
            return status, json.loads(body)
        except (ValueError, RecursionError):
            raise self._not_restate(f"status {status} without JSON") from None

    def _read(self, read: Callable[[], _Read]) -> _Read:
        try:
            return read()
        except (ValueError, KeyError, TypeError):
            raise self._not_restate("an answer of another shape") from None

    def _not_restate(self, what: str) -> AdminFailure:
        text = f"what answers at {self.url} is not Restate's admin API ({what}); {self._where}"
        return AdminFailure(text, ExitCode.SETTINGS_UNUSABLE)

    def _refusal(
        self, status: int, body: bytes | bytearray, wish: Mapping[str, Any] | None, proxy: str | None
    ) -> AdminFailure:
        """Return the failure for a status that is not success; `wish` is the registration, None for a question."""
        said, code = _error_of(body)
        headers: dict[str, str] = (wish or {}).get("additional_headers", {})
        secrets = [
            value for name, value in headers.items() if may_be_secret(name, value) and len(value) >= _LEAST_SECRET
        ]
        secrets += [] if self._token is None else [self._token]
        message = one_line(_ERROR_PREFIX.sub("", said), _MOST_CHARACTERS, secrets).rstrip(".") or "without a reason"
        if status in (401, 403):
            given = "refuses the token" if self._token is not None else "requires a token"
            text, unusable = f"Restate's admin API at {self.url} {given} ({status}): {_TOKEN}", True
        elif code in (_DISCOVERY_FAILED, _NOT_HTTP2):
            text, unusable = f"Restate cannot discover the deployment, nothing was changed: {message}", False
            if proxy is not None:
                text += f". It reaches this URL only if the Restate server has the variable RESTATE_HTTP_PROXY={proxy}"
            elif code == _NOT_HTTP2:
                text += ". The sidecar speaks HTTP/2 there: does its admin port answer? --sidecar says where it listens"
            elif _NO_ANSWER in message:
                text += ". Does the sidecar run there? --sidecar says where Restate reaches it"
        elif status == 409:
            flag = "--force" if code == _DEPLOYMENT_EXISTS else "--breaking"
            text, unusable = f"Restate refuses this change: {message}. Add {flag} to make it nevertheless", True
        elif status >= 500:
            text, unusable = f"Restate failed ({status}): {message}", False
        elif code is None and (wish is None or status not in (400, 422)):
            return self._not_restate(f"status {status}")
        else:
            text, unusable = f"Restate refuses the registration ({status}): {message}", True
        return AdminFailure(text, ExitCode.SETTINGS_UNUSABLE if unusable else ExitCode.FAILED)


def _error_of(body: bytes | bytearray) -> tuple[str, str | None]:
    """Return message and code of an error of Restate; the text itself where it is none."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return text_of(bytes(body)), None
    if not isinstance(data, dict) or not isinstance(data.get("message"), str):
        return text_of(bytes(body)), None
    code = data.get("restate_code")
    return data["message"], code if isinstance(code, str) else None


def _reason(exc: Exception) -> str:
    """Return why there is no connection, in the words of the system where it has any."""
    if isinstance(exc, aiohttp.ClientPayloadError):
        return "its answer breaks off"
    cause = getattr(exc, "os_error", exc)
    if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError):
        # Of several addresses, asyncio has one text, in which each has its error.
        numbers = [cause.errno] if cause.errno else [int(number) for number in _ERRNO.findall(str(cause))]
        if numbers and min(numbers) > 0:
            return " and ".join(dict.fromkeys(map(os.strerror, numbers)))
    return getattr(cause, "strerror", None) or str(exc) or "the connection ended"
