from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import CredentialsInvalid
from proxy.tokens.adc import check, find, looked_for, well_known_path
from tests.unit.tokens.conftest import House

SECRET = "-----BEGIN-SECRET-----"


def test_an_empty_environment_has_no_file(house: House) -> None:
    assert find(house.environment) is None
    assert looked_for(house.environment) == (
        "GOOGLE_APPLICATION_CREDENTIALS is not set and there is no "
        f"{house.folder}/.config/gcloud/application_default_credentials.json"
    )


def test_the_variable_goes_before_the_well_known_file(
    house: House, key_info: dict[str, Any], user_info: dict[str, Any]
) -> None:
    house.environment["CLOUDSDK_CONFIG"] = str(house.folder)
    well_known = house.file(user_info, "application_default_credentials.json")
    named = house.file(key_info)
    found = find(house.environment)
    assert found is not None
    assert (found.path, found.kind) == (str(named), "service_account")
    house.environment["GOOGLE_APPLICATION_CREDENTIALS"] = ""  # as good as unset
    found = find(house.environment)
    assert found is not None
    assert (found.path, found.kind) == (str(well_known), "authorized_user")


def test_the_well_known_file_is_in_gclouds_folder(house: House, user_info: dict[str, Any]) -> None:
    folder = house.folder / ".config" / "gcloud"
    folder.mkdir(parents=True)
    house.file(user_info).rename(folder / "application_default_credentials.json")
    del house.environment["GOOGLE_APPLICATION_CREDENTIALS"]
    found = find(house.environment)
    assert found is not None
    assert found.path == well_known_path(house.environment)


def test_without_a_home_the_users_own_is_taken() -> None:
    assert well_known_path({}).startswith(os.path.expanduser("~"))


def test_a_well_known_path_that_is_no_file_is_passed_over(house: House) -> None:
    house.environment["CLOUDSDK_CONFIG"] = str(house.folder)
    (house.folder / "application_default_credentials.json").mkdir()
    assert find(house.environment) is None


def test_an_unchanged_file_is_not_read_again(house: House, key_info: dict[str, Any]) -> None:
    house.file(key_info)
    first = find(house.environment)
    assert find(house.environment, first) is first


@pytest.mark.parametrize("how", ["written", "replaced", "another path"])
def test_a_changed_file_is_read_again(house: House, key_info: dict[str, Any], how: str) -> None:
    path = house.file(key_info)
    first = find(house.environment)
    changed = {**key_info, "client_email": "a@b"}
    match how:
        case "written":
            house.file(changed)
        case "replaced":  # as Kubernetes replaces a mounted secret
            house.file(changed, "new.json").rename(path)
            house.environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(path)
        case _:
            house.file(changed, "other.json")
    second = find(house.environment, first)
    assert second is not None
    assert second.info["client_email"] == "a@b"


def test_the_content_is_not_in_the_repr(house: House, key_info: dict[str, Any]) -> None:
    house.file(key_info)
    assert "PRIVATE KEY" not in repr(find(house.environment))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        (f"{SECRET} not json", "is not JSON"),
        ('{"type": "service_account", "private_key": "' + SECRET, "is not JSON"),
        (f'["{SECRET}"]', "is not a JSON object"),
        ("null", "is not a JSON object"),
        ("[" * 100_000, "is not JSON"),
        ("x" * (1 << 20) + "x", "larger than 1 MiB"),
        ({"private_key": SECRET}, "has no type; a Google credential file has one of: service_account, authorized_user"),
        ({"type": 5}, "has no type"),
        ({"type": "foo"}, 'has the type "foo"'),
        ({"type": "gdch_service_account"}, "Distributed Cloud"),
        ({"type": "service_account", "private_key": SECRET}, "has no client_email, token_uri"),
        ({"type": "service_account", "private_key": [SECRET], "client_email": "a", "token_uri": ""}, "no private_key"),
        ({"type": "authorized_user", "client_secret": SECRET}, "has no client_id, refresh_token"),
        ({"type": "external_account", "audience": "a", "subject_token_type": "b"}, "has no credential_source"),
        (
            {"type": "impersonated_service_account", "source_credentials": "x"},
            "has no service_account_impersonation_url",
        ),
    ],
)
def test_a_broken_file_is_one_sentence_with_its_path(
    house: House, told: Callable[[BaseException], str], content: object, what: str
) -> None:
    path = house.file(content)
    with pytest.raises(CredentialsInvalid) as caught:
        find(house.environment)
    assert str(path) in str(caught.value)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in told(caught.value)


def test_a_named_file_that_is_missing_is_an_error_and_not_passed_over(house: House) -> None:
    house.environment["GOOGLE_APPLICATION_CREDENTIALS"] = "/nowhere/key.json"
    with pytest.raises(CredentialsInvalid, match=r"names '/nowhere/key\.json', which cannot be read: No such file"):
        find(house.environment)


def test_a_named_directory_is_an_error(house: House) -> None:
    house.environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(house.folder)
    with pytest.raises(CredentialsInvalid, match="which is a directory"):
        find(house.environment)


def test_a_named_pipe_is_not_waited_for(house: House) -> None:
    os.mkfifo(house.folder / "pipe")
    house.environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(house.folder / "pipe")
    with pytest.raises(CredentialsInvalid, match="not a regular file"):
        find(house.environment)


def test_a_path_with_a_null_character_is_an_error(house: House) -> None:
    house.environment["GOOGLE_APPLICATION_CREDENTIALS"] = "a\0b"
    with pytest.raises(CredentialsInvalid, match="cannot be read"):
        find(house.environment)


def test_a_file_that_may_not_be_read_is_an_error(
    house: House, key_info: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = house.file(key_info)

    def forbidden(name: str, mode: str) -> Path:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr("builtins.open", forbidden)  # the tests may run as root, who may read everything
    with pytest.raises(CredentialsInvalid, match=f"{path} cannot be read: Permission denied"):
        find(house.environment)


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        ({"universe_domain": "example.cloud"}, "another universe"),
        ({"token_uri": "file:///etc/passwd"}, "token_uri is not an http"),
        ({"token_uri": "http://oauth2.googleapis.com/token"}, "token_uri is plain http:// to another machine"),
        ({"token_uri": "http://8.8.8.8/token"}, "it has to be https://"),
        ({"token_uri": "http://[/token"}, "it has to be https://"),
    ],
)
def test_other_universes_and_odd_endpoints_are_refused(key_info: dict[str, Any], extra: Any, what: str) -> None:
    with pytest.raises(CredentialsInvalid, match=what):
        check({**key_info, **extra}, "key.json")
    assert check({**key_info, "universe_domain": "googleapis.com"}, "key.json") == "service_account"


@pytest.mark.parametrize("universe", ["example.cloud", "googleapis.com.example"])
def test_another_universe_by_the_environment_is_refused(house: House, universe: str) -> None:
    house.environment["GOOGLE_CLOUD_UNIVERSE_DOMAIN"] = universe
    with pytest.raises(CredentialsInvalid, match="GOOGLE_CLOUD_UNIVERSE_DOMAIN names another universe"):
        find(house.environment)
    for same in ("googleapis.com", ""):
        house.environment["GOOGLE_CLOUD_UNIVERSE_DOMAIN"] = same
        assert find(house.environment) is None


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
