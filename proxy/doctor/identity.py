"""The steps `credentials` and `token`: which credentials are used, and whether they mint a token for the audience."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from proxy.cloud_run import gcloud
from proxy.doctor.claims import claims_of, format_duration, format_time
from proxy.doctor.report import Outcome, Step, StepName, as_problem, as_remedy, failed
from proxy.errors import Failure, ImpersonationDenied, TokenTimeout
from proxy.quoting import one_line
from proxy.routes import Route
from proxy.tokens.credentials.metadata_server import HOST_VARIABLES
from proxy.tokens.google import CredentialInfo, GoogleMint
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.source import TokenSource

__all__ = ["check_credentials", "grant_commands", "mint"]

_SHORT_LIFETIME_SECONDS: Final = 60.0


async def check_credentials(
    google: GoogleMint, environment: Mapping[str, str], timeout_seconds: float
) -> tuple[Step, CredentialInfo | None]:
    """Return the step `credentials`, and the credential source if it is known: what it is, where, and whose."""
    try:
        async with asyncio.timeout(timeout_seconds):
            info = await google.credential_info()
    except TimeoutError:
        failure = TokenTimeout(f"the credential source did not say whose it is within {timeout_seconds:g} s")
        return _failed("credentials", failure), None
    except Failure as failure:
        return _failed("credentials", failure), None
    named_by = _named_by(info, environment)
    where = f"{info.label} {info.place} ({named_by})"
    step = Step(
        name="credentials",
        outcome=Outcome.OK,
        text=f"{one_line(info.principal)}, by the {where}" if _is_email(info.principal) else where,
        details={"source": info.kind, "place": info.place, "named_by": named_by, "principal": one_line(info.principal)},
    )
    return step, info


async def mint(
    tokens: TokenSource, key: TokenKey, route: Route, info: CredentialInfo, now: float
) -> tuple[Step, Token | None]:
    """Return the step `token`, and the token if one was minted. The token source sets the deadline."""
    try:
        token = await tokens.mint_uncached(key)
    except Failure as failure:
        return _failed("token", failure, grant_commands(failure, route, info), audience=route.audience), None
    claims = claims_of(token)
    remaining = token.local_expiry - now
    details: dict[str, Any] = {
        name: claims[name] for name in ("aud", "email", "sub", "iss", "iat", "exp") if name in claims
    }
    details |= {"expires_at": format_time(token.expires_at), "remaining_seconds": round(remaining)}
    subject = one_line(token.principal or "an unknown principal")
    text = (
        f"for {one_line(str(claims.get('aud')))}, as {subject}, "
        f"expires {details['expires_at']}, in {format_duration(remaining)}"
    )
    if remaining <= _SHORT_LIFETIME_SECONDS:
        step = Step(
            name="token",
            outcome=Outcome.WARNING,
            code="token-short-lived",
            text=text,
            remedy="A token that expires within a minute is not cached, so every request mints. "
            "Is the clock of this machine ahead?",
            details=details,
        )
        return step, token
    return Step(name="token", outcome=Outcome.OK, text=text, details=details), token


def grant_commands(failure: Failure, route: Route, info: CredentialInfo) -> tuple[str, ...]:
    """Return the commands that grant what IAM refused; none for any other failure."""
    if not isinstance(failure, ImpersonationDenied) or "workloadIdentityUser" in str(failure):
        return ()
    commands: tuple[str, ...] = ()
    if info.file is not None and info.file.kind == "impersonated_service_account":
        # First, the credential inside the file impersonates the account of the file.
        role = gcloud.ID_TOKEN_CREATOR if route.impersonate is None else gcloud.TOKEN_CREATOR
        inner = info.file.info["source_credentials"].get("client_email")
        commands = gcloud.grant_chain(inner if isinstance(inner, str) else None, (), info.principal, role)
    if route.impersonate is not None:
        commands += gcloud.grant_chain(info.principal, route.delegates, route.impersonate, gcloud.ID_TOKEN_CREATOR)
    return commands


def _failed(name: StepName, failure: Failure, commands: tuple[str, ...] = (), **details: Any) -> Step:
    return failed(name, failure.code, as_problem(failure), as_remedy(failure), commands, details)


def _named_by(info: CredentialInfo, environment: Mapping[str, str]) -> str:
    """Return why this source was chosen: the name of an environment variable, or a phrase."""
    if info.file is None:
        named = next((name for name in HOST_VARIABLES if environment.get(name)), None)
        return named or "there is no credential file"
    if environment.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return "GOOGLE_APPLICATION_CREDENTIALS"
    return "CLOUDSDK_CONFIG" if environment.get("CLOUDSDK_CONFIG") else "gcloud's default location"


def _is_email(name: str) -> bool:
    return ("@" in name or name.startswith("principal://")) and " " not in name
