from __future__ import annotations

import pytest

from proxy.settings.loading import load
from tests.unit.settings.given import ACCOUNT, URL, problems, upstream


@pytest.mark.parametrize(
    ("key", "value"),
    [("gcp_audience", '"x"'), ("gcp_impersonate_service_account", f'"{ACCOUNT}"'), ("gcp_delegates", f'["{ACCOUNT}"]')],
)
def test_settings_that_imply_signing_contradict_gcp_id_token_false(key: str, value: str) -> None:
    found = problems(f'[routes.a]\nurl = "{URL}"\ngcp_id_token = false\n{key} = {value}')
    assert found == {f"my.toml: routes.a.{key}": "contradicts gcp_id_token = false; remove one of the two"}


def test_a_contradiction_between_flags_is_reported_at_a_flag() -> None:
    assert problems(upstream=URL, gcp_id_token=False, gcp_audience="x").keys() == {"--gcp-audience"}


def test_delegates_need_an_impersonated_account() -> None:
    assert "gcp_impersonate_service_account" in problems(upstream=URL, gcp_delegates=(ACCOUNT,))["--gcp-delegates"]


@pytest.mark.parametrize(
    "email",
    ["bob", "bob@", "@project.iam.gserviceaccount.com", "a/b@c.com", "a@b", "a b@c.com", "a@b.com/../x", "a@b.com:x",
     "", "user:a@b.com"],
)  # fmt: skip
def test_an_impersonated_account_must_be_an_e_mail(email: str) -> None:
    found = problems(upstream=URL, gcp_impersonate_service_account=email)
    assert "NAME@PROJECT.iam.gserviceaccount.com" in found["--gcp-impersonate-service-account"]


@pytest.mark.parametrize(
    "copied", ["a@b.com\n", " a@b.com", "serviceAccount:a@b.com", "projects/p/serviceAccounts/a@b.com"]
)
def test_an_impersonated_account_is_its_e_mail_alone(copied: str) -> None:
    found = problems(upstream=URL, gcp_impersonate_service_account=copied)
    assert found["--gcp-impersonate-service-account"].startswith("write a@b.com alone")


@pytest.mark.parametrize(
    "email",
    [ACCOUNT, "123-compute@developer.gserviceaccount.com", "p@appspot.gserviceaccount.com",
     "n@p.example.com.iam.gserviceaccount.com"],
)  # fmt: skip
def test_e_mails_of_all_kinds_of_service_accounts_are_accepted(email: str) -> None:
    assert upstream(gcp_impersonate_service_account=email).routes[""].gcp_impersonate_service_account == email


@pytest.mark.parametrize("audience", ["a b", "é", "a\n", "x" * 2049])
def test_an_audience_must_be_visible_ascii(audience: str) -> None:
    assert "visible ASCII" in problems(upstream=URL, gcp_audience=audience)["--gcp-audience"]


def test_an_empty_audience_is_refused_rather_than_defaulted() -> None:
    found = problems(f'[routes.a]\nurl = "{URL}"\ngcp_audience = ""')
    assert "leave it out" in found["my.toml: routes.a.gcp_audience"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.0.0.8", "[::1]", "192.168.1.1"])
def test_a_token_goes_over_http_only_to_a_local_host_with_allow_http(host: str) -> None:
    url = f"http://{host}:8080"
    assert "--allow-http" in problems(upstream=url)["--upstream"]
    assert "allow_http" in problems(f'[routes.a]\nurl = "{url}"')["my.toml: routes.a.url"]
    assert load(None, {}, {"upstream": url, "allow_http": True}).settings.routes[""].allow_http
    assert not load(None, {}, {"upstream": url, "gcp_id_token": False}).settings.routes[""].gcp_id_token


@pytest.mark.parametrize("host", ["svc.run.app", "8.8.8.8", "[::ffff:8.8.8.8]", "service"])
def test_a_token_never_goes_over_http_to_a_public_host(host: str) -> None:
    assert "use https://" in problems(upstream=f"http://{host}", allow_http=True)["--upstream"]
    assert "use https://" in problems(upstream=f"http://{host}")["--upstream"]


def test_a_route_name_must_be_a_valid_path_prefix() -> None:
    found = problems('[routes."../x"]\nurl = "https://svc.run.app"')
    assert "path prefix" in found['my.toml: routes."../x"']
