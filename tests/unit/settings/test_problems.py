"""Settings that cannot be used: everything that is wrong is told at once, each with its place."""

from __future__ import annotations

import pytest

from proxy.settings.loading import load
from tests.unit.settings.given import ACCOUNT, KEY, OTHER_KEY, URL, problems, upstream, write


def test_all_problems_of_all_layers_are_reported_together_with_their_places() -> None:
    found = problems(
        """
        listn = "x"
        drain-timeout = 3
        workers = 0
        drain_timeout = true
        stream_window = "1MiB"
        http2_engine = "nghttp"
        listen = ["127.0.0.1:9081", 5]
        access_log = "yes"
        gcp_audience = "x"
        [routes.a]
        audience = "x"
        admin = "off"
        gcp_id_token = 1
        [routes]
        b = "https://svc.run.app"
        c = { url = "svc.run.app" }
        """,
        {"CLOUDRUN_SIDECAR_WORKRES": "1", "CLOUDRUN_SIDECAR_MINT_TIMEOUT": "nan", "cloudrun_sidecar_admin": "x"},
        ping_interval="3",
        replay_octets="many",
        upstream="ftp://x",
    )
    assert found == {
        "my.toml: listn": "is not a setting; did you mean listen?",
        "my.toml: drain-timeout": "is not a setting; did you mean drain_timeout?",
        "my.toml: workers": "must be at least 1, not 0 (processes, default 1)",
        "my.toml: drain_timeout": "must be a number, not true (seconds, default 30)",
        "my.toml: stream_window": "must be a whole number, not '1MiB' (octets, default 1048576)",
        "my.toml: http2_engine": "must be one of auto, nghttp2 or h2, not 'nghttp'",
        "my.toml: listen": "must be text in quotes, not 5",
        "my.toml: access_log": "must be true or false, not 'yes' (default false)",
        "my.toml: gcp_audience": "is not a setting; it belongs to a route, below [routes.NAME]",
        "my.toml: routes.a.audience": "is not a setting; did you mean gcp_audience?",
        "my.toml: routes.a.admin": "is a setting of the sidecar, not of a route; put it above the first [routes.…]",
        "my.toml: routes.a.gcp_id_token": "must be true or false, not 1 (default true)",
        "my.toml: routes.a.url": "is missing: The Cloud Run service, https://…run.app",
        "my.toml: routes.b": 'must be a table: write [routes.NAME] and below it url = "https://…"',
        "my.toml: routes.c.url": "'svc.run.app' must begin with https:// (or http:// for a local upstream)",
        "environment: CLOUDRUN_SIDECAR_WORKRES": "is not a setting; did you mean CLOUDRUN_SIDECAR_WORKERS?",
        "environment: CLOUDRUN_SIDECAR_MINT_TIMEOUT": "must be a finite number, not nan (seconds, default 5)",
        "--ping-interval": "must be at least 10, not 3.0 (seconds, default 30)",
        "--replay-octets": "must be a whole number, not 'many' (octets, default 65536)",
        "--upstream": "'ftp://x' must begin with https:// (or http:// for a local upstream)",
    }


def test_what_all_inline_routes_have_together_is_one_problem() -> None:
    routes = ("a=https://a.run.app", "b=https://b.run.app")
    expected = "delegates lead to an impersonated account; set gcp_impersonate_service_account as well"
    assert problems(route=routes, gcp_delegates=(ACCOUNT,)) == {"--gcp-delegates": expected}


def test_commas_between_the_values_of_a_list_are_explained() -> None:
    environment = {
        "CLOUDRUN_SIDECAR_LISTEN": "127.0.0.1:9081,127.0.0.1:9082",
        "CLOUDRUN_SIDECAR_ALLOWED_HOSTS": "a.example,b.example",
        "CLOUDRUN_SIDECAR_DEPLOYMENTS_HOSTS": "a.run.app,b.run.app",
        "CLOUDRUN_SIDECAR_GCP_DELEGATES": f"{ACCOUNT},{ACCOUNT}",
        "CLOUDRUN_SIDECAR_GCP_IMPERSONATE_SERVICE_ACCOUNT": ACCOUNT,
        "CLOUDRUN_SIDECAR_ROUTE": "a=https://a.run.app",
    }
    found = problems(None, environment, admin="127.0.0.1:1,127.0.0.1:2")
    assert "one by one" not in found.pop("--admin")
    assert len(found) == 4
    assert all(what.endswith("; the values of a list are given one by one, in a variable with blanks between")
               for what in found.values())  # fmt: skip


def test_names_with_a_dot_and_flags_of_routes_are_explained() -> None:
    found = problems(
        """
        upstream = "https://svc.run.app"
        route = "a=https://svc.run.app"
        [routes.team.orders]
        url = "https://svc.run.app"
        [routes.team."0123456789abcdef0123456789abcdef"]
        url = "https://svc.run.app"
        """
    )
    flag = 'is a flag, and no setting of a file: write [routes.NAME], or [routes.""] for all paths, and below it url'
    table = "is no setting of a route; a name with a dot or a slash is quoted: [routes."
    assert found == {
        "my.toml: upstream": flag,
        "my.toml: route": flag,
        "my.toml: routes.team.url": "is missing: The Cloud Run service, https://…run.app",
        "my.toml: routes.team.orders": f'{table}"team.orders"]',
        'my.toml: routes.team."[not shown]"': f'{table}"…"]',
    }


@pytest.mark.parametrize(
    ("key", "what"), [("secret", "must begin with publickeyv1_"), ("publickeyv1_0", "base58 of 32 octets")]
)
def test_identity_keys_must_be_public_keys_and_any_other_value_is_not_quoted(key: str, what: str) -> None:
    found = problems(f'restate_identity_keys = ["{KEY}", "{key}"]', upstream=URL)
    ((where, told),) = found.items()
    assert where.startswith("my.toml: restate_identity_keys")
    assert what in told
    assert key not in told


def test_several_identity_keys_may_be_in_one_variable() -> None:
    environment = {"CLOUDRUN_SIDECAR_RESTATE_IDENTITY_KEYS": f"{KEY} {OTHER_KEY}"}
    assert load(None, environment, {"upstream": URL}).settings.restate_identity_keys == (KEY, OTHER_KEY)


@pytest.mark.parametrize(
    ("setting", "value", "what"),
    [
        ("socket_mode", "0755x", "in octal"),
        ("socket_mode", "0460", "in octal"),
        ("socket_mode", "660 ", "in octal"),
        ("socket_user", "a:b", "name or the number"),
        ("socket_user", "", "name or the number"),
        ("socket_group", "-g", "name or the number"),
        ("socket_user", "4294967295", "name or the number"),
        ("socket_group", "99999999999", "name or the number"),
    ],
)
def test_access_to_unix_sockets_is_checked_as_far_as_it_can_be(setting: str, value: str, what: str) -> None:
    found = problems(f'{setting} = "{value}"', upstream=URL)
    assert list(found) == [f"my.toml: {setting}"]
    assert what in found[f"my.toml: {setting}"]


@pytest.mark.parametrize(
    ("given", "where", "what"),
    [
        ('tls_listen = ["127.0.0.1:1"]', "tls_listen", "set tls_certificate and tls_key"),
        ('tls_listen = ["127.0.0.1:1"]\ntls_certificate = "a.pem"', "tls_listen", "set tls_key"),
        ('tls_certificate = "a.pem"\ntls_key = "a.pem"', "settings", "nothing uses tls_certificate and tls_key"),
        ('tls_client_ca = "a.pem"', "settings", "nothing uses tls_client_ca"),
        ('tls_key = "none.pem"', "tls_key", "No such file"),
        ('tls_key = "."', "tls_key", "cannot be read: Is a directory"),
        ('listen = ["[::1]:1"]\ntls_listen = ["[::1]:1"]', "tls_listen", "names an address that is named before"),
        ('tls_listen = ["127.0.0.1:1", "127.0.0.1:1"]', "tls_listen", "names an address that is named before"),
        ('tls_listen = ["0.0.0.0:1"]', "tls_listen", "unsafe_listen"),
        ('admin = "127.0.0.1:1"\ntls_listen = ["127.0.0.1:1"]', "admin", "is taken"),
        ('tls_listen = ["unix:/none/s"]', "tls_listen", "there is no directory /none"),
    ],
)
def test_a_tls_listener_needs_addresses_of_its_own_and_files(given: str, where: str, what: str) -> None:
    write("", "a.pem")
    if "before" in what or where == "admin" or "none/s" in given or "0.0.0.0" in given:
        given += '\ntls_certificate = "a.pem"\ntls_key = "a.pem"'
    found = problems(given, upstream=URL)
    assert any(place.removeprefix("my.toml: ").startswith(where) and what in text for place, text in found.items()), (
        found
    )


def test_where_clients_need_a_certificate_any_address_can_be_listened_on() -> None:
    pem = write("", "a.pem")
    flags = {"tls_listen": ("0.0.0.0:1",), "tls_certificate": pem, "tls_key": pem, "tls_client_ca": pem}
    assert upstream(**flags).tls_listen == ("0.0.0.0:1",)


def test_a_proxy_that_cannot_be_used_is_named_without_its_value() -> None:
    found = problems('upstream_proxy = "socks5://ada:hunter2@proxy:1080"', upstream=URL)
    (sentence,) = [found["my.toml: upstream_proxy"]]
    assert "names a SOCKS proxy, and only HTTP proxies" in sentence
    assert "hunter2" not in str(found)
    assert "must be the URL of an HTTP proxy" in problems(upstream=URL, upstream_proxy="proxy:3128")["--upstream-proxy"]
