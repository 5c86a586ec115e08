from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import CredentialsInvalid
from proxy.tokens.credentials.kinds import credential
from proxy.tokens.credentials.lookup import find, looked_for, well_known_path
from tests.unit.tokens.conftest import House

SECRET = "-----BEGIN-SECRET-----"


def check(info: dict[str, Any], path: str) -> str:
    return credential(path, b"digest", info).kind


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


@contextmanager
def as_nobody() -> Iterator[None]:
    """Be somebody whom permissions hold for; root may enter and read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(before)


def gclouds(house: House) -> Path:
    """Return where gcloud's file is, in a folder that there is."""
    path = Path(well_known_path(house.environment))
    path.parent.mkdir(parents=True)
    return path


def test_a_file_where_gclouds_folder_would_be_means_that_there_is_none(house: House) -> None:
    (house.folder / ".config").write_text("no folder")
    assert find(house.environment) is None


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.mkdir(), "is a directory"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
        (lambda path: path.symlink_to("x" * 300), "cannot be read: File name too long"),
    ],
)
def test_a_file_of_gcloud_that_cannot_be_read_is_not_passed_over(
    house: House, spoil: Callable[[Path], None], why: str
) -> None:
    path = gclouds(house)
    spoil(path)
    with pytest.raises(CredentialsInvalid) as caught:
        find(house.environment)
    assert f"gcloud's credential file, {path}, {why}" in str(caught.value)
    assert "set GOOGLE_APPLICATION_CREDENTIALS" in str(caught.value)


@pytest.mark.parametrize("closed", [".config/gcloud", ".config/gcloud/application_default_credentials.json"])
def test_a_folder_of_gcloud_that_may_not_be_entered_is_not_passed_over(
    house: House, user_info: dict[str, Any], closed: str
) -> None:
    path = gclouds(house)
    path.write_text(json.dumps(user_info))
    opened = [house.folder, *house.folder.parents]
    modes = {folder: folder.stat().st_mode for folder in opened if folder.owner() == path.owner()}
    try:
        for folder, mode in modes.items():
            folder.chmod(mode | 0o011)
        (house.folder / closed).chmod(0)
        with as_nobody(), pytest.raises(CredentialsInvalid, match=f"{path}, cannot be read: Permission denied"):
            find(house.environment)
    finally:
        (house.folder / closed).chmod(0o700)
        for folder, mode in modes.items():
            folder.chmod(mode)


def test_an_unchanged_file_is_not_read_again(house: House, key_info: dict[str, Any]) -> None:
    house.file(key_info)
    first = find(house.environment)
    assert find(house.environment, first) is first


def test_another_content_of_the_same_size_and_time_is_noticed(house: House, key_info: dict[str, Any]) -> None:
    path = house.file({**key_info, "client_email": "a@b"})
    first, state = find(house.environment), path.stat()
    path.write_text(path.read_text().replace("a@b", "c@d"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    second = find(house.environment, first)
    assert second is not None
    assert second.info["client_email"] == "c@d"


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
        ({"type": "foo"}, "has the type 'foo'"),
        ({"type": SECRET}, "has the type a text of 22 characters (not shown)"),
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
    with pytest.raises(CredentialsInvalid, match="must be the path of a credential file"):
        find(house.environment)
    house.environment = {"CLOUDSDK_CONFIG": "a\0b"}
    with pytest.raises(CredentialsInvalid, match="below CLOUDSDK_CONFIG, cannot be read: a path holds no zero octet"):
        find(house.environment)


def test_a_named_file_that_may_not_be_read_is_an_error(house: House, key_info: dict[str, Any]) -> None:
    path = house.file(key_info)
    with (
        as_nobody(),
        pytest.raises(CredentialsInvalid, match=f"names '{path}', which cannot be read: Permission denied"),
    ):
        # Nobody else may even enter the folder.
        find(house.environment)


KEY = {"type": "service_account", "private_key": f"{SECRET}\n{'QUJD' * 400}\n", "client_email": "a@b.c"}
PASTED = [
    json.dumps(KEY),
    json.dumps(KEY, indent=2),
    base64.b64encode(json.dumps(KEY).encode()).decode(),
    f"{SECRET}\n{'QUJD' * 400}\n",
    "Bearer ya29.a0AfH6SMBx",
    "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "https://user:hunter2@example.com/key.json",
    "GOCSPX-1a2B3c4D5e6F7g8H9i0J",
]


@pytest.mark.parametrize("pasted", PASTED)
@pytest.mark.parametrize("variable", ["GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_CONFIG", "HOME"])
def test_a_credential_in_the_place_of_its_path_is_named_and_not_quoted(
    variable: str, pasted: str, told: Callable[[BaseException], str]
) -> None:
    environment = {variable: pasted}
    try:
        found = find(environment)
    except CredentialsInvalid as exc:
        texts = [str(exc), told(exc)]
    else:
        assert found is None
        texts = [looked_for(environment)]
    assert variable in texts[0]
    assert "\n" not in texts[0]
    assert not [piece for piece in pieces(pasted) if any(piece in text for text in texts)]


def pieces(pasted: str) -> list[str]:
    """Every part of what was pasted that would tell anything."""
    return [pasted[start : start + 12] for start in range(0, len(pasted) - 11, 6)]


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
        ({"token_uri": "http://127.0.0.1@example.com/token"}, "holds a user name"),
        ({"token_uri": "https://user:hunter2@example.com/token"}, "token_uri holds a user name or password"),
        ({"token_uri": "http://127.0.0.1\\@example.com/token"}, "token_uri is not an http"),
        ({"token_uri": "https://example.com/a b"}, "token_uri is not an http"),
        ({"token_uri": "http://[/token"}, "token_uri is not an http"),
        ({"token_uri": "https:///token"}, "token_uri is not an http"),
    ],
)
def test_other_universes_and_odd_endpoints_are_refused(key_info: dict[str, Any], extra: Any, what: str) -> None:
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
def test_no_secret_leaves_in_clear_but_for_this_machine_and_metadata_servers(
    key_info: dict[str, Any], place: str
) -> None:
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


def test_the_urls_of_an_inner_credential_are_held_to_the_same(house: House, key_info: dict[str, Any]) -> None:
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
def test_a_url_that_may_be_left_out_may_be_empty(url: str | None) -> None:
    check({**FEDERATION, "service_account_impersonation_url": url, "token_info_url": url}, "wif.json")


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
