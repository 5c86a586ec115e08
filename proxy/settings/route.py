"""The settings of a route, named as Restate names them, and their rules. A token goes over TLS, or to a local upstream.

Validators run in field order, so a bad value does not hide problems with other settings.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from proxy.routes import Route, parse_upstream
from proxy.routes.authentication import NEEDS_ACCOUNT, UNSIGNED, check_account, check_audience

__all__ = ["FROZEN", "RouteSettings"]

FROZEN: Final = ConfigDict(frozen=True, strict=True, extra="forbid", validate_default=True, hide_input_in_errors=True)
"""Strict, because TOML has types: text is not a number. Errors must not repeat their input, which may be a secret."""


def _refuse_url(what: str) -> NoReturn:
    """Raise an error that is reported at `url`, while another setting is validated."""
    raise PydanticCustomError("combination", "{what}", {"what": what, "at": "url"})


class RouteSettings(BaseModel):
    """One upstream and its authentication. The names are Restate's."""

    model_config = FROZEN

    url: str = Field(
        examples=["https://greeter-123456789012.europe-west1.run.app"],
        description="The Cloud Run service, https://…run.app. A path is kept: it takes the place of the route's name.",
    )
    gcp_id_token: bool = Field(
        default=True,
        description=(
            "Add a Google ID token, in X-Serverless-Authorization. "
            "Signing is what the sidecar is for; without it requests are passed on as they are."
        ),
    )
    gcp_impersonate_service_account: str | None = Field(
        default=None,
        examples=["restate-invoker@my-project.iam.gserviceaccount.com"],
        description=(
            "E-mail of the service account that the token is for; unset means the ambient identity. "
            "The ambient identity needs roles/iam.serviceAccountOpenIdTokenCreator on it."
        ),
    )
    gcp_audience: str | None = Field(
        default=None,
        examples=["https://greeter.example.com"],
        description="Audience of the token; unset means the origin of the URL. For services with a custom audience.",
    )
    gcp_delegates: tuple[str, ...] = Field(
        default=(),
        examples=[["relay@my-project.iam.gserviceaccount.com"]],
        description=(
            "E-mails of the service accounts between the ambient identity and the impersonated one, nearest first. "
            "Each needs roles/iam.serviceAccountTokenCreator on the next."
        ),
    )
    allow_http: bool = Field(
        default=False,
        description=(
            "Let tokens go to an http:// upstream, which must be loopback or private. "
            "Without TLS, any machine on the way can read and use them."
        ),
    )

    @field_validator("url")
    @classmethod
    def _url(cls, url: str) -> str:
        parse_upstream(url)
        return url

    @field_validator("gcp_impersonate_service_account", "gcp_audience", "gcp_delegates")
    @classmethod
    def _implies_signing(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("gcp_id_token") is False:
            raise ValueError(UNSIGNED)
        return value

    @field_validator("gcp_impersonate_service_account")
    @classmethod
    def _account(cls, email: str | None) -> str | None:
        return email if email is None else check_account(email)

    @field_validator("gcp_audience")
    @classmethod
    def _audience(cls, audience: str | None) -> str | None:
        return audience if audience is None else check_audience(audience)

    @field_validator("gcp_delegates")
    @classmethod
    def _delegates(cls, emails: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if emails and info.data.get("gcp_impersonate_service_account", "") is None:
            raise ValueError(NEEDS_ACCOUNT)
        return tuple(map(check_account, emails))

    @field_validator("allow_http")
    @classmethod
    def _signed_http(cls, allow_http: bool, info: ValidationInfo) -> bool:
        url, signed = info.data.get("url"), info.data.get("gcp_id_token")
        if url is None or not signed:
            return allow_http
        origin, _ = parse_upstream(url)
        if origin.scheme == "http" and not origin.is_private:
            _refuse_url("a token may not leave over http:// to a host that is not loopback or private; use https://")
        if origin.scheme == "http" and not allow_http:
            _refuse_url("a token would leave over http://; use https://, or say allow_http (--allow-http)")
        return allow_http

    def route(self, name: str) -> Route:
        """Return the route `name` with the URL parsed and the audience filled in."""
        origin, base_path = parse_upstream(self.url)
        return Route(
            name=name,
            origin=origin,
            base_path=base_path,
            signed=self.gcp_id_token,
            audience=self.gcp_audience or "",
            impersonate=self.gcp_impersonate_service_account,
            delegates=self.gcp_delegates,
        )
