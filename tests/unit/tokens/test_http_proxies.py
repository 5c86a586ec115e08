from __future__ import annotations

import pytest
from yarl import URL

from proxy.errors import ProxyInvalid
from proxy.tokens.http_proxies import proxy_for

GOOGLE = "https://oauth2.googleapis.com/token"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    "value", ["http://proxy:3128", "proxy:3128", "https://proxy:3128/", "http://[::1]:3128", "http://proxy"]
)
def test_a_proxy_is_a_host_and_a_port(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    proxy = proxy_for(GOOGLE)
    assert proxy is not None
    assert proxy.url == URL(value if "://" in value else f"http://{value}")
    assert proxy.headers == {}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("socks5://proxy:1080", "names a SOCKS proxy, and only HTTP proxies can be used"),
        ("socks5h://ada:hunter2@proxy:1080", "names a SOCKS proxy"),
        ("SOCKS4a://proxy", "names a SOCKS proxy"),
        ("ftp://proxy:21", "a scheme that is not http or https"),
        ("://proxy", "a scheme that is not http or https"),
        ("http://", "is not the URL of a proxy"),
        ("http://proxy:port", "is not the URL of a proxy"),
        ("http://proxy:99999", "is not the URL of a proxy"),
        ("http://ada:hunter2@:3128", "is not the URL of a proxy"),
        ("http://ada:hunt er2@proxy:3128", "is not the URL of a proxy"),
        ("http://ada:hunter2@proxy:3128/a/path", "is not the URL of a proxy"),
        ("http://proxy..example:3128", "is not the URL of a proxy"),
        (f"http://{'x' * 64}:3128", "is not the URL of a proxy"),
        ("http://[::1", "is not the URL of a proxy"),
        ("true", None),
        ("not a proxy hunter2", "is not the URL of a proxy"),
    ],
)
@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY"])
def test_the_variable_of_an_unusable_proxy_is_named_and_its_value_not_quoted(
    variable: str, value: str, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    if why is None:  # a host may have any name
        assert proxy_for(GOOGLE) is not None
        return
    with pytest.raises(ProxyInvalid, match=why) as refused:
        proxy_for(GOOGLE)
    sentence = str(refused.value)
    assert sentence.startswith(f"the variable {variable}, the proxy for calls to oauth2.googleapis.com,")
    assert sentence.endswith("write http://HOST:PORT, or unset it, or name the host in no_proxy")
    assert "hunt" not in sentence
    assert refused.value.__context__ is None, "the error of the URL parser quotes the value"


def test_an_unusable_proxy_does_not_matter_for_a_host_in_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://proxy:1080")
    monkeypatch.setenv("no_proxy", ".googleapis.com")
    assert proxy_for(GOOGLE) is None
