from __future__ import annotations

import shlex

import pytest

from proxy.deployments.plain_command import DEFAULT_ADMIN_URL, plain_command

URL = "http://127.0.0.1:9081/greeter"


def test_a_registration_without_options_is_the_shortest_command() -> None:
    assert plain_command(URL, (), admin_url=DEFAULT_ADMIN_URL) == f"restate deployments register {URL}"


def test_flags_headers_and_the_admin_api_are_in_the_command() -> None:
    command = plain_command(
        URL,
        (("x-team", "payments"), ("x-cloudrun-sidecar-gcp-delegates", "a@p.example,b@p.example")),
        admin_url="https://restate.example:9070",
        token_file="/run/my token",
        force=True,
        breaking=True,
        http1=True,
        yes=True,
    )
    assert shlex.split(command) == [
        "RESTATE_ADMIN_URL=https://restate.example:9070",
        "RESTATE_AUTH_TOKEN=$(cat '/run/my token')",
        "restate",
        "deployments",
        "register",
        "--yes",
        "--force",
        "--breaking",
        "--use-http1.1",
        URL,
        "--extra-header",
        "x-team=payments",
        "--extra-header",
        "x-cloudrun-sidecar-gcp-delegates=a@p.example,b@p.example",
    ]


def test_a_value_that_may_be_a_secret_is_taken_from_a_shell_variable() -> None:
    command = plain_command(URL, (("x-api.key", "Bearer s3cret"), ("x-empty", "")), admin_url=DEFAULT_ADMIN_URL)
    assert command.endswith('--extra-header "x-api.key=${X_API_KEY:?}" --extra-header x-empty=')
    assert "s3cret" not in command


@pytest.mark.parametrize(
    "name",
    ["authorization", "proxy-authorization", "cookie", "x-api-key", "apikey", "x-team-token", "x-auth", "client-secret",
     "x-password", "x-functions-key", "x-credential", "x-signature"],
)  # fmt: skip
@pytest.mark.parametrize("value", ["hunter2pass", "0123456789abcdef0123"])
def test_the_name_of_a_header_says_that_its_value_is_secret(name: str, value: str) -> None:
    command = plain_command(URL, ((name, value),), admin_url=DEFAULT_ADMIN_URL)
    assert command.endswith(f'--extra-header "{name}=${{{name.upper().replace("-", "_")}:?}}"')
