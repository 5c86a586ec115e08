from __future__ import annotations

import ipaddress

import pytest

from proxy.routes.locality import address_of, is_link_local, is_localhost_name, is_loopback, is_private

HOSTS = {
    # host: (localhost name, loopback, link-local, private)
    "localhost": (True, True, False, True),
    "LocalHost": (True, True, False, True),
    "a.localhost": (True, False, False, True),
    "localhost.example": (False, False, False, False),
    "notlocalhost": (False, False, False, False),
    "127.0.0.1": (False, True, False, True),
    "127.9.9.9": (False, True, False, True),
    "::1": (False, True, False, True),
    "::ffff:127.0.0.1": (False, True, False, True),
    "10.0.0.1": (False, False, False, True),
    "192.168.0.1": (False, False, False, True),
    "172.16.0.1": (False, False, False, True),
    "::ffff:10.0.0.1": (False, False, False, True),
    "fd00::1": (False, False, False, True),
    "169.254.169.254": (False, False, True, True),
    "fe80::1": (False, False, True, True),
    "fe80::1%eth0": (False, False, True, True),
    "::ffff:169.254.169.254": (False, False, True, True),
    "8.8.8.8": (False, False, False, False),
    "::ffff:8.8.8.8": (False, False, False, False),
    "2001:4860:4860::8888": (False, False, False, False),
    "127.1": (False, False, False, False),
    "": (False, False, False, False),
}


@pytest.mark.parametrize("host", HOSTS)
def test_locality_is_that_of_the_name_or_the_address(host: str) -> None:
    assert (is_localhost_name(host), is_loopback(host), is_link_local(host), is_private(host)) == HOSTS[host]


def test_an_address_is_parsed_without_its_zone_and_as_ipv4_if_it_maps_one() -> None:
    assert address_of("fe80::1%eth0") == ipaddress.ip_address("fe80::1")
    assert address_of("::ffff:1.2.3.4") == ipaddress.ip_address("1.2.3.4")
    assert address_of("example.com") is None
