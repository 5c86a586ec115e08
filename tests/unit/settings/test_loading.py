from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from proxy.emulator import Certificates
from proxy.routes import AllowLists
from proxy.settings.layers import SettingsInvalid, environment_name
from proxy.settings.loading import load
from proxy.settings.model import DeploymentSettings, RouteSettings, Settings
from proxy.settings.printing import toml_value
from tests.unit.settings.given import ACCOUNT, KEY, OTHER_KEY, URL, problems, upstream, write


def test_only_a_route_is_required() -> None:
    settings = upstream()
    assert settings == Settings(routes={"": RouteSettings(url=URL)})
    assert settings.listen == ("127.0.0.1:9081",)
    assert (settings.admin, settings.workers, settings.drain_timeout) == ("127.0.0.1:9091", 1, 30)


def test_flags_win_over_the_environment_and_the_environment_over_the_file() -> None:
    file = write('workers = 2\ndrain_timeout = 2\nlog_level = "debug"\n[routes.a]\nurl = "https://svc.run.app"')
    environment = {"CLOUDRUN_SIDECAR_DRAIN_TIMEOUT": "3", "CLOUDRUN_SIDECAR_LOG_LEVEL": "error"}
    settings, places, _ = load(file, environment, {"log_level": "warning"})
    assert (settings.workers, settings.drain_timeout, settings.log_level) == (2, 3.0, "warning")
    assert places["workers",] == "my.toml: workers"
    assert places["drain_timeout",] == "environment: CLOUDRUN_SIDECAR_DRAIN_TIMEOUT"
    assert places["log_level",] == "--log-level"
    assert ("admin",) not in places


def test_an_invalid_value_that_is_overridden_is_no_problem() -> None:
    loaded = load(write("workers = 0"), {"CLOUDRUN_SIDECAR_WORKERS": "x"}, {"workers": "3", "upstream": URL})
    assert loaded.settings.workers == 3


def test_the_default_file_is_read_if_it_exists() -> None:
    write('workers = 7\n[routes.a]\nurl = "https://svc.run.app"', "config/routes.toml")
    assert load(None, {}, {}).settings.workers == 7


def test_the_environment_can_name_the_file_and_the_flag_wins() -> None:
    write("workers = 7", "seven.toml")
    write("workers = 8", "eight.toml")
    environment = {"CLOUDRUN_SIDECAR_CONFIG": "seven.toml"}
    assert load(None, environment, {"upstream": URL}).settings.workers == 7
    assert load(Path("eight.toml"), environment, {"upstream": URL}).settings.workers == 8


def test_every_setting_can_be_given_in_every_layer() -> None:
    pem = write("", "a.pem").absolute()
    values: dict[str, Any] = {
        "listen": ("127.0.0.1:1", "[::1]:2"), "unsafe_listen": True, "admin": "127.0.0.1:3", "workers": 2,
        "upstream_proxy": "http://ada:s3cret@proxy:3128",
        "takeover_socket": "unix:/takeover",
        "drain_timeout": 1.5, "connect_timeout": 1.0, "mint_timeout": 2.0, "stream_wait_timeout": 3.0,
        "max_upstream_connections": 4, "ping_interval": 11.0, "ping_timeout": 6.0, "upstream_idle_timeout": 7.0,
        "add_retry_after": False, "http2_engine": "h2", "max_concurrent_streams": 200, "stream_window": 70_000,
        "queued_octets": 2 << 20, "replay_octets": 0, "max_field_section": 20_000, "max_interim_heads": 9,
        "cancels_per_minute": 500, "first_request_timeout": 9.5,
        "head_timeout": 8.5, "stall_timeout": 7.5, "http1_octets_per_second": 7, "upstream_cancels_per_minute": 50,
        "log_level": "error", "log_format": "json", "access_log": True,
        "socket_mode": "0600", "socket_user": "restate", "socket_group": "1000", "max_connections": 7,
        "max_connection_age": 900.0, "max_upstream_connection_age": 300.0,
        "tls_listen": ("127.0.0.1:4",), "tls_certificate": pem, "tls_key": pem, "tls_client_ca": pem,
        "allowed_hosts": ("sidecar.example", "sidecar"), "restate_identity_keys": (KEY, OTHER_KEY),
    }  # fmt: skip
    assert {*values, "upstream_ca", "deployments", "routes"} == set(Settings.model_fields)
    expected = Settings(routes={"": RouteSettings(url=URL)}, **values)
    file = "".join(f"{name} = {toml_value(value)}\n" for name, value in values.items())
    texts = {name: " ".join(v) if isinstance(v, tuple) else str(v) for name, v in values.items()}
    assert load(write(file), {}, {"upstream": URL}).settings == expected
    assert load(None, {environment_name(n): text for n, text in texts.items()}, {"upstream": URL}).settings == expected
    assert load(None, {}, {**values, "upstream": URL}).settings == expected
    assert load(None, {}, {**texts, "listen": values["listen"], "upstream": URL}).settings == expected


def test_deployments_can_be_given_in_every_layer_and_each_list_replaces_that_of_the_layer_below() -> None:
    lists = {
        "hosts": ("a.example", "*-123456789012.europe-west1.run.app", "b.example"),
        "accounts": (ACCOUNT,),
        "audiences": ("a.example=https://x", "b.example=1-a1b2c3d4e5f6g7h8i9j0k1l2.apps.googleusercontent.com"),
    }
    expected = Settings(deployments=DeploymentSettings(**lists))
    file = write("[deployments]\n" + "".join(f"{name} = {toml_value(value)}\n" for name, value in lists.items()))
    texts = {environment_name(f"deployments_{name}"): " ".join(value) for name, value in lists.items()}
    assert load(file, {}, {}).settings == expected
    assert load(None, texts, {}).settings == expected
    assert load(None, {}, {f"deployments_{name}": value for name, value in lists.items()}).settings == expected
    settings, places, _ = load(
        file, {"CLOUDRUN_SIDECAR_DEPLOYMENTS_ACCOUNTS": "b@x.example"}, {"deployments_audiences": ("b.example=y",)}
    )
    assert settings.deployments.allow_lists() == AllowLists(lists["hosts"], ("b@x.example",), ("b.example=y",))
    assert [places["deployments", name] for name in lists] == [
        "my.toml: deployments.hosts",
        "environment: CLOUDRUN_SIDECAR_DEPLOYMENTS_ACCOUNTS",
        "--deployments-audiences",
    ]


def test_all_problems_with_deployments_are_told_at_once_each_at_its_key() -> None:
    file = write("""
        [deployments]
        hosts = ["*.run.app", "127.0.0.1", "greeter.example.com"]
        accounts = ["owner"]
        audiences = ["greeter.example.com", "127.0.0.1=x"]
        host = "x"
        workers = 2
    """)
    with pytest.raises(SettingsInvalid) as invalid:
        load(file, {}, {})
    found = [(where.removeprefix("my.toml: deployments."), what) for where, what in invalid.value.problems]
    assert [where for where, _ in found] == ["hosts", "hosts", "accounts", "audiences", "audiences", "host", "workers"]
    assert "other people's projects" in found[0][1]
    assert "is an address" in found[1][1]
    assert found[5][1] == "is not a setting; did you mean hosts?"
    assert "put it above the first [deployments]" in found[6][1]


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("deployments = 3", "deployments", "must be a table: write [deployments]"),
        ('deployments.hosts = "a.example"', "deployments.hosts", "must be a list of texts"),
        (f'deployments.accounts = ["{ACCOUNT}"]', "deployments.accounts", "has no effect without hosts"),
        ('deployments.audiences = ["a.example=x"]', "deployments.audiences", "add it there as well"),
        ('hosts = ["a.example"]', "hosts", "it belongs below [deployments]"),
    ],
)
def test_each_problem_with_deployments_names_its_place(text: str, where: str, what: str) -> None:
    assert what in problems(text)[f"my.toml: {where}"]


def test_hosts_of_deployments_are_enough_without_a_route() -> None:
    assert load(None, {}, {"deployments_hosts": ("a.example",)}).settings.routes == {}


def test_flags_that_were_not_given_and_empty_variables_count_as_absent() -> None:
    environment = {"CLOUDRUN_SIDECAR_WORKERS": "", "CLOUDRUN_SIDECAR_CONFIG": "", "CLOUDRUN_SIDECAR_ROUTE": ""}
    settings = load(None, environment, {"upstream": URL, "workers": None, "listen": (), "route": ()}).settings
    assert settings == upstream()


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("1", True), ("YES", True), ("on", True), ("false", False), ("0", False), ("No", False)],
)
def test_booleans_in_the_environment_accept_the_usual_words(text: str, value: bool) -> None:
    assert load(None, {"CLOUDRUN_SIDECAR_ACCESS_LOG": text}, {"upstream": URL}).settings.access_log is value


@pytest.mark.parametrize("service", ["", "ADMIN_", "CANARY_EU_"])
def test_variables_of_kubernetes_for_services_of_this_name_and_that_of_the_build_are_ignored(service: str) -> None:
    environment = {"CLOUDRUN_SIDECAR_BUILD": "none"} | {
        f"CLOUDRUN_SIDECAR_{service}{name}": "tcp://10.0.0.1:9081"
        for name in (
            "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_H2C", "PORT", "PORT_9081_TCP", "PORT_9081_TCP_PROTO",
            "PORT_9081_TCP_PORT", "PORT_9081_TCP_ADDR",
        )
    }  # fmt: skip
    assert load(None, environment, {"upstream": URL}).settings == upstream()


def test_a_variable_that_is_like_one_of_kubernetes_is_a_problem_without_the_host_of_its_service() -> None:
    environment = {"CLOUDRUN_SIDECAR_ADMIN_PORT": "9091", "CLOUDRUN_SIDECAR_CANARY_SERVICE_HOST": "10.0.0.1"}
    with pytest.raises(SettingsInvalid) as caught:
        load(None, environment, {"upstream": URL})
    assert [problem.where for problem in caught.value.problems] == ["environment: CLOUDRUN_SIDECAR_ADMIN_PORT"]


# ---- routes


def test_routes_come_from_tables_named_by_path_prefix() -> None:
    file = write(f"""
        [routes.greeter]
        url = "https://greeter.run.app/base"
        [routes."team/orders"]
        url = "https://orders.run.app"
        gcp_impersonate_service_account = "{ACCOUNT}"
        gcp_audience = "orders"
        gcp_delegates = ["relay@project.iam.gserviceaccount.com"]
        [routes.""]
        url = "http://127.0.0.1:8080"
        gcp_id_token = false
    """)
    table = load(file, {}, {}).settings.route_table()
    greeter, orders, rest = table.routes
    assert (greeter.name, str(greeter.origin), greeter.base_path) == ("greeter", "https://greeter.run.app", "/base")
    assert (greeter.signed, greeter.audience, greeter.impersonate) == (True, "https://greeter.run.app", None)
    assert (orders.audience, orders.impersonate) == ("orders", ACCOUNT)
    assert orders.delegates == ("relay@project.iam.gserviceaccount.com",)
    assert (rest.name, rest.signed) == ("", False)
    assert table.match(b"/team/orders/x").route is orders


def test_inline_routes_share_their_options() -> None:
    flags = {
        "route": ("a=https://a.run.app", "b=https://b.run.app/x?".rstrip("?")),
        "gcp_impersonate_service_account": ACCOUNT,
    }
    settings = load(None, {"CLOUDRUN_SIDECAR_GCP_AUDIENCE": "aud"}, flags).settings
    assert list(settings.routes) == ["a", "b"]
    for route in settings.routes.values():
        assert (route.gcp_audience, route.gcp_impersonate_service_account) == ("aud", ACCOUNT)


def test_routes_of_all_layers_are_merged_by_name_and_replaced_as_a_whole() -> None:
    file = write(f'[routes.a]\nurl = "{URL}"\ngcp_audience = "old"\n[routes.b]\nurl = "{URL}/file"')
    environment = {
        "CLOUDRUN_SIDECAR_ROUTE": "a=https://svc.run.app/env c=https://svc.run.app/env",
        "CLOUDRUN_SIDECAR_UPSTREAM": "https://svc.run.app/env",
    }
    settings, places, _ = load(file, environment, {"route": ("c=https://svc.run.app/flag",)})
    paths = {name: route.url.removeprefix(URL) for name, route in settings.routes.items()}
    assert paths == {"a": "/env", "b": "/file", "c": "/flag", "": "/env"}
    assert settings.routes["a"].gcp_audience is None
    assert places["routes", "a"] == "environment: CLOUDRUN_SIDECAR_ROUTE a=…"
    assert places["routes", "b"] == "my.toml: routes.b"
    assert places["routes", "c"] == "--route c=…"
    assert places["routes", ""] == "environment: CLOUDRUN_SIDECAR_UPSTREAM"


def test_without_a_route_the_error_names_the_three_ways_to_give_one() -> None:
    (what,) = problems().values()
    assert "--upstream URL" in what
    assert "--route NAME=URL" in what
    assert "[routes.NAME]" in what


def test_a_route_that_could_not_be_read_is_not_reported_as_missing() -> None:
    assert problems(route=("https://svc.run.app/?a=b",)).keys() == {"--route"}
    assert problems("routes = 3").keys() == {"my.toml: routes"}
    assert problems("workers = ").keys() == {"my.toml"}


@pytest.mark.parametrize("text", ["greeter", "https://svc.run.app", "https://user:hunter2@svc.run.app/?a=b"])
def test_a_route_flag_without_a_name_says_what_to_write(text: str) -> None:
    what = problems(route=(text,))["--route"]
    assert "must be NAME=URL" in what
    assert "--upstream" in what
    assert "hunter2" not in what


def test_a_route_given_twice_in_one_layer_is_refused() -> None:
    assert "second time" in problems(route=("a=https://x.run.app", "a=https://y.run.app"))["--route"]
    assert "second time" in problems(route=("=https://x.run.app",), upstream=URL)["--upstream"]
    twice = problems(None, {"CLOUDRUN_SIDECAR_ROUTE": "a=https://x.run.app a=https://y.run.app"})
    assert "second time" in twice["environment: CLOUDRUN_SIDECAR_ROUTE"]
    assert "Cannot declare" in problems('[routes.a]\nurl = "x"\n[routes.a]\nurl = "y"')["my.toml"]


def test_options_of_inline_routes_need_an_inline_route() -> None:
    found = problems(f'[routes.a]\nurl = "{URL}"', {"CLOUDRUN_SIDECAR_GCP_AUDIENCE": "x"}, gcp_id_token=False)
    assert found.keys() == {"environment: CLOUDRUN_SIDECAR_GCP_AUDIENCE", "--no-gcp-id-token"}
    assert "[routes.NAME]" in found["--no-gcp-id-token"]


# ---- the certificate authority


def test_a_relative_upstream_ca_is_relative_to_its_settings_file(tmp_path: Path) -> None:
    certificates = Certificates.create(tmp_path / "deep")
    write(f'upstream_ca = "{certificates.ca_file.name}"', "deep/my.toml")
    expected = certificates.ca_file.resolve()
    assert load(Path("deep/my.toml"), {}, {"upstream": URL}).settings.upstream_ca == expected
    assert upstream(upstream_ca=f"deep/{certificates.ca_file.name}").upstream_ca == expected
    assert upstream(upstream_ca=certificates.ca_file).upstream_ca == expected


def test_upstream_ca_must_exist_and_have_a_certificate() -> None:
    write("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "broken.pem")
    write("", "empty.pem")
    assert "No such file" in problems(upstream=URL, upstream_ca="none.pem")["--upstream-ca"]
    assert "no PEM certificate" in problems(upstream=URL, upstream_ca="broken.pem")["--upstream-ca"]
    assert "no PEM certificate" in problems(upstream=URL, upstream_ca="empty.pem")["--upstream-ca"]
    assert "null character" in problems('upstream_ca = "a\\u0000b"', upstream=URL)["my.toml: upstream_ca"]
    assert "text in quotes that names a file" in problems("upstream_ca = 3", upstream=URL)["my.toml: upstream_ca"]


def test_upstream_ca_is_checked_by_the_tls_library(tmp_path: Path) -> None:
    settings = upstream(upstream_ca=Certificates.create(tmp_path).ca_file)
    assert settings.upstream_ca is not None
    context = ssl.create_default_context(cafile=str(settings.upstream_ca))
    assert context.cert_store_stats()["x509"] > 0
