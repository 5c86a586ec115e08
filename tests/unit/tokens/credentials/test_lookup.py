"""Where the credential file is looked for, when it is read again, and the sentence for each file that is no use."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import CredentialsInvalid
from proxy.tokens.credentials.lookup import find, looked_for, well_known_path
from tests.unit.tokens.conftest import Home

SECRET = "-----BEGIN-SECRET-----"


def test_an_empty_environment_has_no_file(home: Home) -> None:
    assert find(home.environment) is None
    assert looked_for(home.environment) == (
        "GOOGLE_APPLICATION_CREDENTIALS is not set and there is no "
        f"{home.folder}/.config/gcloud/application_default_credentials.json"
    )


def test_the_variable_has_precedence_over_the_well_known_file(
    home: Home, key_info: dict[str, Any], user_info: dict[str, Any]
) -> None:
    home.environment["CLOUDSDK_CONFIG"] = str(home.folder)
    well_known = home.file(user_info, "application_default_credentials.json")
    named = home.file(key_info)
    found = find(home.environment)
    assert found is not None
    assert (found.path, found.kind) == (str(named), "service_account")
    home.environment["GOOGLE_APPLICATION_CREDENTIALS"] = ""  # as good as unset
    found = find(home.environment)
    assert found is not None
    assert (found.path, found.kind) == (str(well_known), "authorized_user")


def test_the_well_known_file_is_in_gclouds_folder(home: Home, user_info: dict[str, Any]) -> None:
    folder = home.folder / ".config" / "gcloud"
    folder.mkdir(parents=True)
    home.file(user_info).rename(folder / "application_default_credentials.json")
    del home.environment["GOOGLE_APPLICATION_CREDENTIALS"]
    found = find(home.environment)
    assert found is not None
    assert found.path == well_known_path(home.environment)


def test_the_home_of_the_user_is_used_without_the_variable() -> None:
    assert well_known_path({}).startswith(os.path.expanduser("~"))


def test_a_user_without_a_home_directory_has_no_file_of_gcloud(
    home: Home, user_info: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2_000_000_000)
    monkeypatch.chdir(home.folder)
    folder = home.folder / "~" / ".config" / "gcloud"  # not where `~` leads
    folder.mkdir(parents=True)
    home.file(user_info).rename(folder / "application_default_credentials.json")
    assert find({}) is None
    assert looked_for({}).endswith("because HOME is not set and the user has no home directory")


@contextmanager
def as_nobody() -> Iterator[None]:
    """Run as an unprivileged user: permissions do not apply to root."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(before)


def gclouds(home: Home) -> Path:
    """Return where gcloud's file is, in a folder that there is."""
    path = Path(well_known_path(home.environment))
    path.parent.mkdir(parents=True)
    return path


def test_a_file_in_place_of_gclouds_folder_means_that_there_is_no_credential_file(home: Home) -> None:
    (home.folder / ".config").write_text("no folder")
    assert find(home.environment) is None


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.mkdir(), "is a directory"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
        (lambda path: path.symlink_to("x" * 300), "cannot be read: File name too long"),
    ],
)
def test_an_unreadable_file_of_gcloud_is_an_error(home: Home, spoil: Callable[[Path], None], why: str) -> None:
    path = gclouds(home)
    spoil(path)
    with pytest.raises(CredentialsInvalid) as caught:
        find(home.environment)
    assert f"gcloud's credential file, {path}, {why}" in str(caught.value)
    assert "set GOOGLE_APPLICATION_CREDENTIALS" in str(caught.value)


@pytest.mark.parametrize("closed", [".config/gcloud", ".config/gcloud/application_default_credentials.json"])
def test_an_unreadable_folder_of_gcloud_is_an_error(home: Home, user_info: dict[str, Any], closed: str) -> None:
    path = gclouds(home)
    path.write_text(json.dumps(user_info))
    opened = [home.folder, *home.folder.parents]
    modes = {folder: folder.stat().st_mode for folder in opened if folder.owner() == path.owner()}
    try:
        for folder, mode in modes.items():
            folder.chmod(mode | 0o011)
        (home.folder / closed).chmod(0)
        with as_nobody(), pytest.raises(CredentialsInvalid, match=f"{path}, cannot be read: Permission denied"):
            find(home.environment)
    finally:
        (home.folder / closed).chmod(0o700)
        for folder, mode in modes.items():
            folder.chmod(mode)


def test_an_unchanged_file_is_not_read_again(home: Home, key_info: dict[str, Any]) -> None:
    home.file(key_info)
    first = find(home.environment)
    assert find(home.environment, first) is first


def test_another_content_of_the_same_size_and_time_is_noticed(home: Home, key_info: dict[str, Any]) -> None:
    path = home.file({**key_info, "client_email": "a@b"})
    first, state = find(home.environment), path.stat()
    path.write_text(path.read_text().replace("a@b", "c@d"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    second = find(home.environment, first)
    assert second is not None
    assert second.info["client_email"] == "c@d"


@pytest.mark.parametrize("how", ["written", "replaced", "another path"])
def test_a_changed_file_is_read_again(home: Home, key_info: dict[str, Any], how: str) -> None:
    path = home.file(key_info)
    first = find(home.environment)
    changed = {**key_info, "client_email": "a@b"}
    match how:
        case "written":
            home.file(changed)
        case "replaced":  # as Kubernetes replaces a mounted secret
            home.file(changed, "new.json").rename(path)
            home.environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(path)
        case _:
            home.file(changed, "other.json")
    second = find(home.environment, first)
    assert second is not None
    assert second.info["client_email"] == "a@b"


def test_the_content_is_not_in_the_repr(home: Home, key_info: dict[str, Any]) -> None:
    home.file(key_info)
    assert "PRIVATE KEY" not in repr(find(home.environment))


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
def test_an_invalid_file_gets_one_sentence_with_its_path(
    home: Home, told: Callable[[BaseException], str], content: object, what: str
) -> None:
    path = home.file(content)
    with pytest.raises(CredentialsInvalid) as caught:
        find(home.environment)
    assert str(path) in str(caught.value)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in told(caught.value)


def test_a_missing_file_that_the_variable_names_is_an_error(home: Home) -> None:
    home.environment["GOOGLE_APPLICATION_CREDENTIALS"] = "/nowhere/key.json"
    with pytest.raises(CredentialsInvalid, match=r"names '/nowhere/key\.json', which cannot be read: No such file"):
        find(home.environment)


def test_a_named_directory_is_an_error(home: Home) -> None:
    home.environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(home.folder)
    with pytest.raises(CredentialsInvalid, match="which is a directory"):
        find(home.environment)


def test_a_named_pipe_is_not_waited_for(home: Home) -> None:
    os.mkfifo(home.folder / "pipe")
    home.environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(home.folder / "pipe")
    with pytest.raises(CredentialsInvalid, match="not a regular file"):
        find(home.environment)


def test_a_path_with_a_null_character_is_an_error(home: Home) -> None:
    home.environment["GOOGLE_APPLICATION_CREDENTIALS"] = "a\0b"
    with pytest.raises(CredentialsInvalid, match="must be the path of a credential file"):
        find(home.environment)
    home.environment = {"CLOUDSDK_CONFIG": "a\0b"}
    with pytest.raises(
        CredentialsInvalid, match="below CLOUDSDK_CONFIG, cannot be read: a path cannot have a null character"
    ):
        find(home.environment)


def test_a_named_file_that_may_not_be_read_is_an_error(home: Home, key_info: dict[str, Any]) -> None:
    path = home.file(key_info)
    path.chmod(0)
    with (
        as_nobody(),
        pytest.raises(CredentialsInvalid, match=f"names '{path}', which cannot be read: Permission denied"),
    ):
        find(home.environment)


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
def test_the_variable_with_a_credential_in_place_of_a_path_is_named_and_the_value_not_quoted(
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
