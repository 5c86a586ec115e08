from __future__ import annotations

import pytest

from proxy.network.http_proxy import HttpProxy, login_refusal, parse_http_proxy


@pytest.mark.parametrize(
    ("text", "proxy", "shown"),
    [
        ("http://proxy.internal:3128", HttpProxy(host="proxy.internal", port=3128), "proxy.internal:3128"),
        ("HTTP://proxy.internal/", HttpProxy(host="proxy.internal", port=80), "proxy.internal:80"),
        ("http://[fd00::1]:8080", HttpProxy(host="fd00::1", port=8080), "[fd00::1]:8080"),
        (
            "http://ada:s%40cret%3A@10.0.0.1:3128",
            HttpProxy(host="10.0.0.1", port=3128, login="ada:s@cret:"),
            "10.0.0.1:3128",
        ),
        ("http://ada@10.0.0.1:1", HttpProxy(host="10.0.0.1", port=1, login="ada:"), "10.0.0.1:1"),
    ],
)
def test_a_url_names_a_proxy(text: str, proxy: HttpProxy, shown: str) -> None:
    assert parse_http_proxy(text) == proxy
    assert str(proxy) == shown
    assert parse_http_proxy(proxy.url()) == HttpProxy(host=proxy.host, port=proxy.port)


def test_a_login_is_sent_and_never_shown() -> None:
    proxy = parse_http_proxy("http://Aladdin:open%20sesame@proxy:3128")
    assert proxy.authorization == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    assert "sesame" not in f"{proxy} {proxy!r} {proxy.url()}"
    assert parse_http_proxy("http://proxy:3128").authorization is None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("proxy:3128", "must be the URL of an HTTP proxy"),
        ("http://pro xy:3128", "must be the URL of an HTTP proxy"),
        ("http://pröxy:3128", "must be the URL of an HTTP proxy"),
        ("socks5://hunter2@proxy:1080", "names a SOCKS proxy"),
        ("https://ada:hunter2@proxy:443", "names a proxy that is not reached by http://"),
        ("http://ada:hunter2@proxy:99999", "must have a host, a port"),
        ("http://ada:hunter2@[::1", "must have a host, a port"),
        ("http://ada:hunter2@proxy:0", "must have a host, a port"),
        ("http://ada:hunter2@:3128", "must have a host, a port"),
        ("http://ada:hunter2@proxy..internal:3128", "must have a host, a port"),
        (f"http://ada:hunter2@{'a' * 64}:3128", "must have a host, a port"),
        ("http://ada:hunter2@proxy:3128/path", "must have a host, a port"),
        ("http://ada:hunter2@proxy:3128?a", "must have a host, a port"),
        ("http://ada:hunter2@proxy:3128#a", "must have a host, a port"),
    ],
)
def test_what_is_wrong_is_said_with_the_right_form_and_without_the_value(text: str, what: str) -> None:
    with pytest.raises(ValueError, match="write http://HOST:PORT, or") as wrong:
        parse_http_proxy(text)
    assert what in str(wrong.value)
    assert "hunter2" not in str(wrong.value)


@pytest.mark.parametrize(
    ("challenges", "wanted"),
    [
        ([], ""),
        ([""], ""),
        (['Basic realm="a, b"'], ""),
        (["BASIC"], ""),
        (["YWRhOmh1bnRlcjI"], ""),
        (["Negotiate", 'basic realm="x"'], ""),
        (['Digest realm="Basic, in", nonce=x, qop="auth", Basic realm="x"'], ""),
        (["Negotiate"], "Negotiate"),
        (["Negotiate YII=, NTLM"], "Negotiate, NTLM"),
        (["NTLM", "NTLM"], "NTLM"),
        (['Digest realm="in", nonce="x", qop="auth", algorithm=MD5'], "Digest"),
    ],
)
@pytest.mark.parametrize("has_login", [False, True])
def test_a_proxy_without_basic_is_not_blamed_on_the_login(challenges: list[str], wanted: str, has_login: bool) -> None:
    said = login_refusal(challenges, "http://…", has_login=has_login)
    if wanted:
        assert said == f"wants a login by {wanted} (407), and only Basic is supported; let it take Basic"
    else:
        assert said.startswith("refuses the login in its URL (407)" if has_login else "requires a login (407)")
        assert said.endswith("; write http://…, percent-encoded")
