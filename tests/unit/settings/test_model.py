from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from proxy.settings.layers import SettingsInvalid
from proxy.settings.loading import load
from proxy.settings.model import Settings
from tests.unit.settings.given import URL, problems, upstream


@pytest.mark.parametrize("address", ["0.0.0.0:9081", "[::]:9081", "10.0.0.1:9081", "sidecar:9081"])
def test_listening_beyond_loopback_needs_unsafe_listen(address: str) -> None:
    what = problems(upstream=URL, listen=("127.0.0.1:9081", address))["--listen"]
    assert "every client that reaches it can call the services" in what
    assert "--unsafe-listen" in what
    assert upstream(listen=(address,), unsafe_listen=True).listen == (address,)


def test_loopback_and_unix_sockets_do_not_need_unsafe_listen() -> None:
    here = Path.cwd()
    addresses = ("127.0.0.1:9081", "127.1.2.3:0", "[::1]:9081", "localhost:9082", f"unix:{here}/s")
    assert upstream(listen=addresses).listen == addresses


def test_the_admin_port_may_be_anywhere_or_off() -> None:
    assert upstream(admin="0.0.0.0:9091").admin == "0.0.0.0:9091"
    assert upstream(admin="off").admin == "off"


def test_two_listeners_cannot_share_an_address_unless_the_port_is_0() -> None:
    assert "twice" in problems(upstream=URL, listen=("127.0.0.1:1", "127.0.0.1:1"))["--listen"]
    assert "twice" in problems(upstream=URL, listen=("[::1]:1", "[0:0:0:0:0:0:0:1]:1"))["--listen"]
    assert "taken by `listen`" in problems(upstream=URL, admin="127.0.0.1:9081")["--admin"]
    assert upstream(listen=("127.0.0.1:0", "127.0.0.1:0"), admin="127.0.0.1:0").admin == "127.0.0.1:0"


def test_an_empty_list_of_addresses_is_refused() -> None:
    assert "no address" in problems(f'listen = []\n[routes.a]\nurl = "{URL}"')["my.toml: listen"]


def test_the_directory_of_a_unix_socket_must_exist() -> None:
    found = problems(upstream=URL, listen=("unix:/nowhere/s",), admin="unix:/nowhere/a")
    assert "no directory /nowhere" in found["--listen"]
    assert "no directory /nowhere" in found["--admin"]


@pytest.mark.parametrize(
    ("setting", "least", "most"),
    [
        ("workers", 1, 64),
        ("drain_timeout", 0, 3600),
        ("ping_interval", 10, 3600),
        ("max_upstream_connections", 1, 4096),
        ("max_concurrent_streams", 128, 65_535),
        ("stream_window", 16_384, (1 << 31) - 1),
        ("queued_octets", 1 << 20, 1 << 40),
        ("replay_octets", 0, 16 << 20),
        ("max_field_section", 16_384, 1 << 20),
    ],
)
def test_the_bounds_of_numbers_are_allowed_values(setting: str, least: int, most: int) -> None:
    for allowed in (least, most):
        flags = {"queued_octets": str(1 << 31), setting: str(allowed)}
        assert getattr(upstream(**flags), setting) == allowed
    assert "at least" in problems(upstream=URL, **{setting: str(least - 1)})[f"--{setting.replace('_', '-')}"]
    assert "at most" in problems(upstream=URL, **{setting: str(most + 1)})[f"--{setting.replace('_', '-')}"]


@pytest.mark.parametrize("setting", ["connect_timeout", "mint_timeout", "stream_wait_timeout", "ping_timeout"])
def test_timeouts_are_more_than_zero_and_finite(setting: str) -> None:
    flag = f"--{setting.replace('_', '-')}"
    assert problems(upstream=URL, **{setting: "0"})[flag].startswith("must be more than 0, not 0")
    assert "finite" in problems(upstream=URL, **{setting: "inf"})[flag]


def test_the_cap_of_queued_octets_is_at_least_one_stream_window() -> None:
    found = problems(upstream=URL, stream_window="2097152", queued_octets="1048576")
    assert "at least stream_window (2097152)" in found["--queued-octets"]


def test_settings_are_immutable_at_every_level() -> None:
    settings = upstream()
    with pytest.raises(ValidationError):
        settings.workers = 2
    with pytest.raises(ValidationError):
        settings.routes[""].url = "x"


def test_defaults_are_valid_except_for_the_missing_route() -> None:
    with pytest.raises(ValidationError) as invalid:
        Settings()
    assert [error["loc"] for error in invalid.value.errors()] == [("routes",)]


def test_settings_made_in_code_are_as_strict_about_types_as_a_file() -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"routes": {"": {"url": URL}}, "workers": "2"})
    with pytest.raises(ValidationError):
        Settings.model_validate({"routes": {"": {"url": URL}}, "drain_timeout": True})


def test_every_invalid_address_is_reported() -> None:
    with pytest.raises(SettingsInvalid) as invalid:
        load(None, {}, {"upstream": URL, "listen": ("0.0.0.0:9081", "9082")})
    exposed, no_host = invalid.value.problems
    assert (exposed.where, no_host.where) == ("--listen", "--listen")
    assert "0.0.0.0:9081 can be reached from other machines" in exposed.what
    assert "'9082' has no host" in no_host.what
