"""What IAM's refusals mean: an API, a project or an account, and not a missing role."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.tokens.calls import Reply
from proxy.tokens.credentials.iam_refusals import (
    access_token_refused,
    enable_account,
    named_account,
    refusal_without_role,
)

CALLER = "caller@shop.iam.gserviceaccount.com"
MIDDLE = "middle@shop.iam.gserviceaccount.com"
TARGET = "target@shop.iam.gserviceaccount.com"


def sentence(message: str, reason: str | None = None, chain: tuple[str, ...] = (TARGET,), /, **metadata: str) -> str:
    details: list[Any] = ["junk", {"metadata": "junk"}, {"metadata": {"consumer": 5}}]
    if reason is not None:
        details.append({"reason": reason, "metadata": metadata})
    error = {"message": message, "details": details}
    failure = refusal_without_role(Reply(403, {}, json.dumps({"error": error}).encode()), CALLER, chain)
    return str(failure or "")


@pytest.mark.parametrize(
    ("metadata", "command"),
    [
        ({"consumer": "projects/123456789012"}, " --project=123456789012"),
        ({"consumer": "projects/$(id)"}, ""),
        ({}, ""),
    ],
)
def test_an_api_that_is_not_enabled_is_enabled_in_the_project_that_iam_names(
    metadata: dict[str, str], command: str
) -> None:
    text = sentence("It is disabled.", "SERVICE_DISABLED", **metadata)
    assert text == (
        f"IAM refused to mint for {TARGET} (IAM: It is disabled.): enable it, and wait some minutes: "
        f"gcloud services enable iamcredentials.googleapis.com{command}"
    )


@pytest.mark.parametrize(
    ("metadata", "project"),
    [({"consumer": "projects/billing"}, "the quota project billing"), ({}, "the quota project:")],
)
def test_a_quota_project_that_the_caller_may_not_use_is_named_with_the_role_on_it(
    metadata: dict[str, str], project: str
) -> None:
    text = sentence("No.", "USER_PROJECT_DENIED", **metadata)
    assert f"{CALLER} may not use {project}" in text
    assert "grant it roles/serviceusage.serviceUsageConsumer on that project" in text
    assert "GOOGLE_CLOUD_QUOTA_PROJECT" in text


def test_a_token_without_the_scope_is_reported_with_the_scope() -> None:
    assert "must include cloud-platform" in sentence("No.", "ACCESS_TOKEN_SCOPE_INSUFFICIENT")


@pytest.mark.parametrize(
    ("said", "chain", "account"),
    [
        (f"Service account {TARGET} is disabled.", (TARGET,), TARGET),
        (f"Service account {MIDDLE} is disabled.", (MIDDLE, TARGET), MIDDLE),
        ("The account is disabled.", (TARGET,), TARGET),
    ],
)
def test_a_disabled_account_is_named_with_the_command_that_enables_it(
    said: str, chain: tuple[str, ...], account: str
) -> None:
    text = sentence(said, None, chain)
    assert text == f"the service account {account} is disabled (IAM: {said}): {enable_account(account)}"
    assert f"gcloud iam service-accounts enable {account}" in text


def test_one_of_several_accounts_is_disabled_where_iam_names_none() -> None:
    text = sentence("The account is disabled.", None, (MIDDLE, TARGET))
    assert text.startswith(f"one of the service accounts {MIDDLE}, {TARGET} is disabled")


def test_any_other_refusal_is_about_a_role() -> None:
    assert sentence("Permission denied.", "IAM_PERMISSION_DENIED", permission="x") == ""
    assert refusal_without_role(Reply(403, {}, b"junk"), CALLER, (TARGET,)) is None
    assert refusal_without_role(Reply(403, {}, b'{"error": {"details": 5}}'), CALLER, (TARGET,)) is None
    disabled = refusal_without_role(Reply(400, {}, b"disabled"), CALLER, (TARGET,))
    assert str(disabled).startswith(f"the service account {TARGET} is disabled")


def test_an_account_outside_the_chain_is_named_if_iam_names_no_other() -> None:
    assert named_account((TARGET,), f"{CALLER}. {TARGET}.") == TARGET
    assert named_account((TARGET,), f"{CALLER}.") == CALLER
    assert named_account((TARGET,), "nobody") is None


def test_a_refused_access_token_has_a_remedy_apart_from_the_problem() -> None:
    failure = access_token_refused(CALLER, " (IAM: no)")
    assert failure.problem == f"IAM does not accept the access token of {CALLER} (IAM: no)"
    assert failure.remedy == "see whether that identity is disabled or deleted, or has to sign in again"
