from __future__ import annotations

import pytest

from proxy.emulator import CannotListen
from proxy.emulator.sockets import address, bind


def test_port_0_is_a_free_port() -> None:
    with bind("127.0.0.1", 0) as first, bind("127.0.0.1", 0) as second:
        assert address(first) != address(second)
        assert address(first).startswith("127.0.0.1:")


def test_a_taken_port_is_named_in_one_sentence() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(CannotListen) as caught:
            bind("127.0.0.1", port)
    assert str(caught.value) == f"Cannot listen on 127.0.0.1:{port}: the port is in use by another program."
    assert (caught.value.host, caught.value.port) == ("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_foreign_address_is_refused(host: str) -> None:
    with pytest.raises(CannotListen, match=host):
        bind(host, 0)


def test_ipv6_is_in_brackets() -> None:
    with bind("[::1]", 0) as bound:
        assert address(bound).startswith("[::1]:")


def test_a_wildcard_is_reached_over_loopback() -> None:
    with bind("0.0.0.0", 0) as bound:
        assert address(bound).startswith("127.0.0.1:")
