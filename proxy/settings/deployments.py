"""The settings of open routes: what a deployment may choose itself. Nothing is allowed by default.

Validators run in field order, so a bad value does not hide problems with other settings.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, ValidationInfo, field_validator

from proxy.routes import AllowLists
from proxy.routes.allow_lists import check_audience_pair, check_host
from proxy.routes.authentication import check_account
from proxy.settings.route import FROZEN

__all__ = ["DeploymentSettings"]


def _pair(text: str, info: ValidationInfo) -> str:
    return check_audience_pair(text, info.data.get("hosts"))


class DeploymentSettings(BaseModel):
    """What deployments may choose themselves, with Restate's own words and without a route here."""

    model_config = FROZEN

    hosts: tuple[Annotated[str, AfterValidator(check_host)], ...] = Field(
        default=(),
        examples=[["greeter-123456789012.europe-west1.run.app", "*-123456789012.europe-west1.run.app"]],
        description=(
            "Host names of services that deployments may name in their URL, or *-PROJECT_NUMBER.REGION.run.app. "
            "Unset, there are no open routes. A wildcard stands for the services of one project in one region, "
            "no other wildcard is allowed: every deployment gets tokens for the hosts that it includes."
        ),
    )
    accounts: tuple[Annotated[str, AfterValidator(check_account)], ...] = Field(
        default=(),
        examples=[["restate-invoker@my-project.iam.gserviceaccount.com"]],
        description=(
            "E-mails of the service accounts that deployments may impersonate, or name as delegates. "
            "Unset, deployments are called with the ambient identity only."
        ),
    )
    audiences: tuple[Annotated[str, AfterValidator(_pair)], ...] = Field(
        default=(),
        examples=[["greeter-123456789012.europe-west1.run.app=https://greeter.example.com"]],
        description=(
            "HOST=AUDIENCE: audiences that deployments may choose beside the origin of their host. "
            "Each belongs to one exact host, so that a token for one service is never sent to another."
        ),
    )

    @field_validator("accounts")
    @classmethod
    def _need_hosts(cls, accounts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if accounts and info.data.get("hosts") == ():
            raise ValueError("has no effect without hosts; list the hosts that deployments may name, too")
        return accounts

    def allow_lists(self) -> AllowLists:
        """Return the same lists without pydantic."""
        return AllowLists(self.hosts, self.accounts, self.audiences)
