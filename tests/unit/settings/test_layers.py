from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.settings.layers import (
    DEFAULT_CONFIG,
    Place,
    Problem,
    SettingsInvalid,
    did_you_mean,
    environment_name,
    flag_name,
    read_environment,
    read_file,
    toml_key,
)
from tests.unit.settings.given import write


def test_a_setting_has_one_name_in_all_layers() -> None:
    assert flag_name("drain_timeout") == "--drain-timeout"
    assert environment_name("drain_timeout") == "CLOUDRUN_SIDECAR_DRAIN_TIMEOUT"
    assert toml_key("drain_timeout") == "drain_timeout"


def test_keys_are_quoted_as_toml_requires() -> None:
    assert toml_key("routes", "team/orders", "url") == 'routes."team/orders".url'
    assert toml_key("routes", "", "url") == 'routes."".url'


def test_a_place_in_a_file_includes_the_keys_below_it() -> None:
    assert Place("my.toml", ("routes", "a")).at("url") == "my.toml: routes.a.url"
    assert Place("--upstream").at("url") == "--upstream"


def test_the_text_of_the_error_has_a_line_for_each_problem() -> None:
    invalid = SettingsInvalid([Problem("--a", "is wrong"), Problem("my.toml: b", "is wrong too")])
    assert str(invalid) == "--a: is wrong\nmy.toml: b: is wrong too"


def test_only_a_similar_name_is_suggested() -> None:
    assert did_you_mean("workres", ["workers", "listen"]) == "; did you mean workers?"
    assert did_you_mean("zzz", ["workers", "listen"]) == ""


def test_a_missing_file_is_a_problem_only_if_it_was_named() -> None:
    assert read_file(None, {}).problems == []
    for file in (read_file(Path("no.toml"), {}), read_file(None, {"CLOUDRUN_SIDECAR_CONFIG": "no.toml"})):
        assert file.problems == [Problem("no.toml", "there is no such file; name one that exists")]


def test_a_link_to_a_missing_file_is_a_problem_though_nobody_named_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    DEFAULT_CONFIG.parent.mkdir()
    DEFAULT_CONFIG.symlink_to("elsewhere.toml")
    assert read_file(None, {}).problems == [Problem(str(DEFAULT_CONFIG), "is a link to a file that does not exist")]


@pytest.mark.parametrize(
    "text", [f"workers = {'9' * 5_000}", f"workers = {'[' * 5_000}{']' * 5_000}", f"routes{'.a' * 5_000} = 1"]
)
def test_a_file_that_is_too_much_for_python_is_a_problem_and_no_traceback(text: str) -> None:
    problem = "has a number of thousands of digits, or hundreds of lists or tables in each other"
    assert read_file(write(text), {}).problems == [Problem("my.toml", problem)]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("workers = 1\nlisten = [\n  x\n", "at line 3, column 3"),
        ("workers = 1\nworkers = 2\n", "at line 2, column 12"),
        ("a = 1\nlisten = [", "at line 2, column 11, the end of the file"),
        ("[routes.a]\n[routes.a]\n", "at line 2, column"),
    ],
)
def test_invalid_toml_is_reported_with_line_and_column(text: str, place: str) -> None:
    (problem,) = read_file(write(text), {}).problems
    assert problem.where == "my.toml"
    assert re.search(f"is not valid TOML: .*{place}", problem.what)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('url = "https://a.run.app\n', "a quote is missing before the end of the line (at line 1, column 25)"),
        ('url = "https://a.run.app\r\n', "a quote is missing before the end of the line (at line 1, column 25)"),
        ('url = "https\x01"\n', r"Illegal character '\x01' (at line 1, column 13)"),
        ("[secret]\n[secret]\n", "Cannot declare a key twice (at line 2, column 8)"),
    ],
)
def test_invalid_toml_names_a_character_that_is_wrong_and_no_key(text: str, what: str) -> None:
    assert read_file(write(text), {}).problems == [Problem("my.toml", f"is not valid TOML: {what}")]


def test_a_file_that_cannot_be_read_is_a_problem_not_a_traceback() -> None:
    Path("latin.toml").write_bytes(b'admin = "caf\xe9"')
    Path("folder").mkdir()
    assert read_file(Path("latin.toml"), {}).problems == [
        Problem("latin.toml", "is not UTF-8, as TOML must be (at octet 12)")
    ]
    assert read_file(Path("folder"), {}).problems == [Problem("folder", "is a directory; name a file in it")]
    empty = "is a directory, as an empty path is; name a file in it"
    assert read_file(Path(""), {}).problems == [Problem(".", empty)]


def test_a_byte_order_mark_and_windows_line_ends_are_accepted() -> None:
    Path("windows.toml").write_bytes(b"\xef\xbb\xbfworkers = 1\r\nadmin = 'off'\r\n")
    file = read_file(Path("windows.toml"), {})
    assert (file.document, file.problems) == ({"workers": 1, "admin": "off"}, [])


def test_variables_without_the_prefix_are_ignored() -> None:
    environment = {"PATH": "/bin", "CLOUDRUN_SIDECAR": "x", "cloudrun_sidecar_workers": "1", "XCLOUDRUN_SIDECAR_A": "x"}
    assert read_environment(environment, ["workers"]) == ({}, [])


def test_line_ends_and_blanks_around_a_value_do_not_count() -> None:
    environment = {"CLOUDRUN_SIDECAR_LOG_LEVEL": "info\n", "CLOUDRUN_SIDECAR_ADMIN": " off\r\n"}
    assert read_environment(environment, ["log_level", "admin"]) == ({"log_level": "info", "admin": "off"}, [])
    write("workers = 1\n")
    assert read_file(None, {"CLOUDRUN_SIDECAR_CONFIG": "my.toml\n"}).document == {"workers": 1}


def test_a_variable_of_blanks_alone_is_no_empty_one() -> None:
    # It may be meant to close something: the rules of its setting report it.
    environment = {"CLOUDRUN_SIDECAR_TLS_CLIENT_CA": " \n"}
    assert read_environment(environment, ["tls_client_ca"]) == ({"tls_client_ca": " \n"}, [])


def test_a_variable_that_names_no_setting_is_a_problem() -> None:
    found, problems = read_environment({"CLOUDRUN_SIDECAR_Workers": "1", "CLOUDRUN_SIDECAR_QQ": "1"}, ["workers"])
    assert found == {}
    assert problems == [
        Problem("environment: CLOUDRUN_SIDECAR_Workers", "is not a setting; did you mean CLOUDRUN_SIDECAR_WORKERS?"),
        Problem("environment: CLOUDRUN_SIDECAR_QQ", "is not a setting"),
    ]
