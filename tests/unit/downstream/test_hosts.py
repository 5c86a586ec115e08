"""Host names that mean this server."""

from __future__ import annotations

import pytest

from proxy.downstream.hosts import CONTAINER_HOSTS, HostRules, parse_authority


@pytest.mark.parametrize(
    ("text", "authority"),
    [
        (b"localhost", ("localhost", 80)),
        (b"LocalHost.:9081", ("localhost", 9081)),
        (b"a_b.c-d.example:", ("a_b.c-d.example", 80)),
        (b"127.0.0.1:0", ("127.0.0.1", 0)),
        (b"[::1]", ("::1", 80)),
        (b"[0:0:0::1]:65535", ("::1", 65535)),
    ],
)
def test_an_authority_is_a_host_and_a_port(text: bytes, authority: tuple[str, int]) -> None:
    assert parse_authority(text) == authority


@pytest.mark.parametrize(
    "text", [b"", b":80", b"a b", b"a@b", b"a:b", b"a:65536", b"::1", b"[::g]", b"[1:2]", b"[::1%25lo]", b"a..b"]
)
def test_an_invalid_authority_is_refused_without_quoting_it(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"neither|IPv6|port") as raised:
        parse_authority(text)
    assert not text or text.decode() not in str(raised.value)


NAMES_OF_OURS = ["localhost", "a.localhost", "127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", *CONTAINER_HOSTS]


@pytest.mark.parametrize("server", ["127.0.0.1", "127.0.0.5", "::1", "::ffff:127.0.0.1", "::1%lo"])
def test_on_loopback_only_names_that_public_dns_cannot_resolve_are_allowed(server: str) -> None:
    rules = HostRules((server, 9081), frozenset({"sidecar.example"}))
    assert rules.is_loopback
    for name in (*NAMES_OF_OURS, "sidecar.example", "10.0.0.1", "fe80::1"):
        assert rules.allows(name), name
    for name in ("evil.example", "localhost.evil.example", "x", "internal", "a.sidecar.example", "127.1"):
        assert not rules.allows(name), name


@pytest.mark.parametrize("server", [("10.0.0.1", 9081), ("::ffff:10.0.0.1", 9081), ("fe80::1%eth0", 9081), None])
def test_off_loopback_any_name_is_allowed(server: tuple[str, int] | None) -> None:
    assert not HostRules(server).is_loopback
    assert HostRules(server).allows("whatever.example")


def test_an_absolute_url_means_this_server_by_name_and_port_or_by_host() -> None:
    rules = HostRules(("127.0.0.1", 9081), frozenset({"sidecar.example"}))
    for name in (*NAMES_OF_OURS, "sidecar.example"):
        assert rules.is_own((name, 9081), None)
        assert rules.is_own((name, 80), (name, 80))
        assert not rules.is_own((name, 80), (name, 81))
    for name in ("evil.example", "10.0.0.1", "169.254.169.254"):
        assert not rules.is_own((name, 9081), (name, 9081))
    outside = HostRules(("10.0.0.1", 9081))
    assert outside.is_own(("10.0.0.1", 9081), None)
    assert outside.is_own(("sidecar.prod", 80), ("sidecar.prod", 80))
    assert not outside.is_own(("sidecar.prod", 80), ("other", 80))
    assert HostRules(None).is_own(("any", 80), ("any", 80))
    assert not HostRules(None).is_own(("localhost", 80), None)
