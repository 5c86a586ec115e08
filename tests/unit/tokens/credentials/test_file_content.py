"""Which universes, endpoints and federation sources a credential file may name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from proxy.errors import CredentialsInvalid
from proxy.tokens.credentials.kinds import credential
from proxy.tokens.credentials.lookup import find
from tests.unit.tokens.conftest import Home


def check(info: dict[str, Any], path: str) -> str:
    return credential(path, b"digest", info).kind


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        ({"universe_domain": "example.cloud"}, "another universe"),
        ({"token_uri": "file:///etc/passwd"}, "token_uri is not an http"),
        ({"token_uri": "http://oauth2.googleapis.com/token"}, "token_uri is plain http:// to another machine"),
        ({"token_uri": "http://8.8.8.8/token"}, "it has to be https://"),
        ({"token_uri": "http://10.0.0.8/token"}, "it has to be https://"),
        ({"token_uri": "http://[::ffff:8.8.8.8]/token"}, "it has to be https://"),
        ({"token_uri": "HTTP://example.com/token"}, "it has to be https://"),
        ({"token_uri": "http://localhost.example.com/token"}, "it has to be https://"),
        ({"token_uri": "http://127.0.0.1@example.com/token"}, "has a user name"),
        ({"token_uri": "https://user:hunter2@example.com/token"}, "token_uri has a user name or password"),
        ({"token_uri": "http://127.0.0.1\\@example.com/token"}, "token_uri is not an http"),
        ({"token_uri": "https://example.com/a b"}, "token_uri is not an http"),
        ({"token_uri": "http://[/token"}, "token_uri is not an http"),
        ({"token_uri": "https:///token"}, "token_uri is not an http"),
    ],
)
def test_other_universes_and_invalid_endpoints_are_refused(key_info: dict[str, Any], extra: Any, what: str) -> None:
    with pytest.raises(CredentialsInvalid, match=what):
        check({**key_info, **extra}, "key.json")
    assert check({**key_info, "universe_domain": "googleapis.com"}, "key.json") == "service_account"


@pytest.mark.parametrize("universe", ["", None, "googleapis.com"])
def test_an_empty_universe_is_googles_default(key_info: dict[str, Any], universe: str | None) -> None:
    assert check({**key_info, "universe_domain": universe}, "key.json") == "service_account"


FEDERATION: Mapping[str, Any] = {
    "type": "external_account",
    "audience": "//iam.googleapis.com/p",
    "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
    "token_url": "https://sts.googleapis.com/v1/token",
    "credential_source": {"url": "https://idp.example.com/token"},
}
URL_PLACES = {
    "token_uri": {},
    "token_url": FEDERATION,
    "token_info_url": FEDERATION,
    "service_account_impersonation_url": FEDERATION,
    "credential_source.url": FEDERATION,
    "credential_source.region_url": FEDERATION,
    "credential_source.imdsv2_session_token_url": FEDERATION,
    "credential_source.regional_cred_verification_url": FEDERATION,
    "revoke_url": {
        "type": "external_account_authorized_user",
        "client_id": "a",
        "client_secret": "b",
        "refresh_token": "c",
        "token_url": "https://sts.googleapis.com/v1/oauthtoken",
        "audience": "d",
    },
}


def with_url(key_info: dict[str, Any], place: str, url: object) -> dict[str, Any]:
    """Return the content of a credential file with this URL in this place."""
    info = dict(URL_PLACES[place] or key_info)
    parent, _, name = place.rpartition(".")
    if parent:
        info[parent] = {**info[parent], name: url}
    else:
        info[name] = url
    return info


@pytest.mark.parametrize("place", URL_PLACES)
def test_plain_http_is_allowed_only_to_this_machine_and_metadata_servers(key_info: dict[str, Any], place: str) -> None:
    for url in ("http://example.com/x", "http://10.1.2.3/x", "http://[fd00::1]/x", "http://metadata.example/x"):
        with pytest.raises(CredentialsInvalid, match=f"its {place} is plain http:// to another machine"):
            check(with_url(key_info, place, url), "wif.json")
    with pytest.raises(CredentialsInvalid, match=f"its {place} is not an http"):
        check(with_url(key_info, place, "ftp://example.com/x"), "wif.json")
    for url in (
        "https://example.com/x",
        "http://127.0.0.1:8080/x",
        "http://localhost/x",
        "http://[::1]/x",
        "http://[::ffff:127.0.0.1]/x",
        "http://169.254.169.254/latest",
        "http://[fd00:ec2::254]/latest",
        "http://[fe80::1]/x",
    ):
        check(with_url(key_info, place, url), "wif.json")


def test_the_urls_of_an_inner_credential_are_checked_too(home: Home, key_info: dict[str, Any]) -> None:
    with pytest.raises(CredentialsInvalid, match="service_account_impersonation_url is plain http://"):
        check(
            {
                "type": "impersonated_service_account",
                "service_account_impersonation_url": "http://iam.example/v1/x:generateAccessToken",
                "source_credentials": key_info,
            },
            "file.json",
        )


@pytest.mark.parametrize("url", [None, ""])
def test_an_optional_url_may_be_empty(url: str | None) -> None:
    check({**FEDERATION, "service_account_impersonation_url": url, "token_info_url": url}, "wif.json")


@pytest.mark.parametrize("universe", ["example.cloud", "googleapis.com.example"])
def test_another_universe_in_the_environment_is_refused(home: Home, universe: str) -> None:
    home.environment["GOOGLE_CLOUD_UNIVERSE_DOMAIN"] = universe
    with pytest.raises(CredentialsInvalid, match="GOOGLE_CLOUD_UNIVERSE_DOMAIN names another universe"):
        find(home.environment)
    for same in ("googleapis.com", ""):
        home.environment["GOOGLE_CLOUD_UNIVERSE_DOMAIN"] = same
        assert find(home.environment) is None


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ({"headers": {}}, "has none of environment_id, executable, file, url"),
        ({"file": ""}, "the file of its credential_source is empty"),
        ({"url": ["https://a"]}, "the url of its credential_source is empty"),
        ({"environment_id": None}, "the environment_id of its credential_source is empty"),
        ({"executable": {}}, "has no command"),
        ({"executable": "/bin/true"}, "has no command"),
        ({"executable": {"command": ["/bin/true"]}}, "has no command"),
    ],
)
def test_a_federation_file_that_names_no_source_is_refused(source: Any, what: str) -> None:
    info = {"type": "external_account", "audience": "a", "subject_token_type": "b", "credential_source": source}
    with pytest.raises(CredentialsInvalid, match=what) as caught:
        check(info, "wif.json")
    assert "wif.json" in str(caught.value)


def test_x509_federation_is_refused() -> None:
    info = {
        "type": "external_account",
        "audience": "a",
        "subject_token_type": "urn:ietf:params:oauth:token-type:mtls",
        "credential_source": {"certificate": {"use_default_certificate_config": True}},
    }
    with pytest.raises(CredentialsInvalid, match=r"X\.509"):
        check(info, "wif.json")
