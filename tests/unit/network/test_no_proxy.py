from __future__ import annotations

import pytest

from proxy.network.no_proxy import is_reached_directly
from proxy.routes import Origin
from proxy.tokens.http_proxies import proxy_for
from proxy.upstream.tunnel import tunnels_to

HOST = "oauth2.googleapis.com"


@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
@pytest.mark.parametrize(
    ("value", "excepted"),
    [
        ("", False),
        ("*", True),
        (HOST, True),
        (HOST.upper(), True),
        (f"{HOST}:443", True),
        (f"{HOST}:8443", False),
        ("other.example, googleapis.com", True),
        (".googleapis.com", True),
        ("*.googleapis.com", True),
        ("apis.com", False),
        ("*apis.com", False),
        (f"*.{HOST}", True),
    ],
)
def test_the_exceptions_are_the_same_for_upstreams_and_for_google(
    value: str, excepted: bool, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    assert is_reached_directly(HOST, 443) == excepted
    assert (proxy_for(f"https://{HOST}/token") is None) == excepted
    assert tunnels_to(Origin("https", HOST, 443)) != excepted


@pytest.mark.parametrize(
    ("value", "host", "excepted"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("other.example, 10.1.2.3/8 ", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8", "fd00::1", False),
        ("10.0.0.0/33", "10.1.2.3", False),
        ("10.0.0.0/8", HOST, False),
        ("fd00::/8", "fd00::1", True),
        ("[fd00::1]", "fd00::1", True),
        ("[fd00::1]:443", "fd00::1", True),
        ("[fd00::1]:8443", "fd00::1", False),
        ("fd00:0:0::1", "fd00::1", True),
    ],
)
def test_addresses_are_excepted_by_themselves_and_by_their_networks(
    value: str, host: str, excepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", value)
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    assert (proxy_for(f"https://{f'[{host}]' if ':' in host else host}/token") is None) == excepted
    assert tunnels_to(Origin("https", host, 443)) != excepted


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_this_machine_is_reached_without_the_proxy(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    assert proxy_for(f"https://{f'[{host}]' if ':' in host else host}:8443/token") is None
    assert not tunnels_to(Origin("https", host, 8443))
