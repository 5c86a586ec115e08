from __future__ import annotations

import socket
from pathlib import Path

import pytest

from proxy.network.address import Address, parse_address, parse_address_or_off, parse_host_name


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9081", Address("127.0.0.1", 9081, "")),
        ("[::1]:0", Address("::1", 0, "")),
        ("my-host.local:65535", Address("my-host.local", 65535, "")),
        ("unix:/run/s.sock", Address("", 0, "/run/s.sock")),
    ],
)
def test_an_address_is_formatted_as_it_is_parsed(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("9081", "has no host; write 127.0.0.1:9081 for this machine"),
        ("", "no port"),
        (":9081", "has no host; write 127.0.0.1:9081 for this machine"),
        ("*:9081", "has no host; write 0.0.0.0:9081"),
        ("localhost", "no port"),
        ("[::1]", "no port"),
        ("::1", "without brackets, or without a port"),
        ("127.0.0.1:", "port must be a number"),
        ("127.0.0.1:65536", "port must be a number"),
        ("127.0.0.1:-1", "port must be a number"),
        ("127.0.0.1:٣", "port must be a number"),
        ("127.0.0.1:h2c", "port must be a number"),
        ("::1:9081", "without brackets"),
        ("fe80::1%lo:9081", "without brackets|stands in brackets"),
        ("[127.0.0.1]:9081", "not an IPv6 address"),
        ("[::1:9081", "stands in brackets"),
        ("a b:1", "neither a host name nor an address"),
        ("http://127.0.0.1:9081", "is a URL; an address to listen on has no scheme"),
        ("tcp://[::1]:9081", "is a URL"),
        ("127.0.0.1:9081/", "has a slash; an address to listen on has no path"),
        ("me@127.0.0.1:9081", "has no user name"),
        ("127.0.0.1:9081,127.0.0.1:9082", "several addresses"),
        ("256.0.0.1:80", "not an IPv4 address"),
        ("127.1:80", "not an IPv4 address"),
        ("unix:", "absolute path"),
        ("unix:relative", "absolute path"),
        ("unix:/dir/", "absolute path"),
        ("unix:/" + "x" * 103, "103 octets"),
    ],
)
def test_an_invalid_address_says_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_address(text)


def test_a_password_in_an_invalid_address_is_not_quoted() -> None:
    with pytest.raises(ValueError, match="is a URL") as refused:
        parse_address("http://ada:hunter2@127.0.0.1:9081")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("[0:0:0:0:0:0:0:1]:9081", "[::1]:9081"),
        ("[FE80::0001%lo]:9081", "[fe80::1%lo]:9081"),
        ("LocalHost:9081", "localhost:9081"),
    ],
)
def test_one_address_in_two_forms_is_one(text: str, other: str) -> None:
    assert parse_address(text) == parse_address(other)
    assert str(parse_address(text)) == other


def test_a_wildcard_address_is_connected_to_by_loopback_of_its_family() -> None:
    assert parse_address("0.0.0.0:1").connectable_host == "127.0.0.1"
    assert parse_address("[::]:1").connectable_host == "::1"
    assert parse_address("[0::0]:1").connectable_host == "::1"
    assert parse_address("10.0.0.1:1").connectable_host == "10.0.0.1"


@pytest.mark.parametrize(("text", "name"), [("Sidecar.Example.", "sidecar.example"), ("sidecar", "sidecar")])
def test_a_host_name_is_lowered_and_loses_its_final_dot(text: str, name: str) -> None:
    assert parse_host_name(text) == name


@pytest.mark.parametrize(
    "text", ["", ".", "a..b", "a:9081", "http://a", "*.a", ".a", "a/", "a b", "b\u00fccher", "me@a"]
)
def test_an_invalid_host_name_says_why(text: str) -> None:
    with pytest.raises(ValueError, match="without scheme, port or wildcard"):
        parse_host_name(text)


def test_off_means_no_address() -> None:
    assert parse_address_or_off("off") is None
    assert parse_address_or_off("[::1]:1") == Address("::1", 1, "")
    with pytest.raises(ValueError, match="no port"):
        parse_address_or_off("OFF")


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost:1", True), ("LOCALHOST:1", True), ("127.1.2.3:1", True), ("[::1]:1", True), ("unix:/s", True),
        ("[::ffff:127.0.0.1]:1", True), ("0.0.0.0:1", False), ("[::]:1", False), ("10.0.0.1:1", False),
        ("a.localhost:1", False), ("[::ffff:10.0.0.1]:1", False), ("[fe80::1]:1", False),
    ],
)  # fmt: skip
def test_an_address_that_only_this_machine_reaches_is_local(host: str, local: bool) -> None:
    """A name below localhost is not: what it resolves to is up to the resolver."""
    assert parse_address(host).is_local is local


def test_the_address_of_a_bound_socket_is_one_that_clients_can_use(tmp_path: Path) -> None:
    for family, asked in ((socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_INET6, ("::1", 0))):
        with socket.socket(family) as bound:
            bound.bind(asked)
            port = bound.getsockname()[1]
            assert parse_address(str(Address.of_socket(bound.getsockname()))) == Address(asked[0], port, "")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"{tmp_path}/s")
        assert str(Address.of_socket(bound.getsockname())) == f"unix:{tmp_path}/s"


def test_a_unix_socket_without_a_file_is_shown_with_an_at_sign() -> None:
    assert str(Address.of_socket(b"\0name\xff")) == "unix:@name\\xff"


def test_the_path_of_a_socket_with_a_credential_in_it_is_refused_and_not_quoted() -> None:
    token = "ya29.a0AfH6SMBxK3jD8fQ2pLr7TnV4wY6zB1cE5gH9"
    with pytest.raises(ValueError, match="shown to everybody") as refused:
        parse_address(f"unix:/run/{token}")
    assert token not in str(refused.value)
