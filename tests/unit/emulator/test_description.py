"""The file that describes an emulated project."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from proxy.emulator import Limits, Pod, Role, echo
from proxy.emulator.description import Description, GrantDescription, InvalidDescription, ServiceDescription, read
from proxy.emulator.project import build, service_urls, set_port

WHOLE = """
metadata_account = "vm@shop.iam.gserviceaccount.com"
accounts = ["batch@shop.iam.gserviceaccount.com"]
users = ["person@example.com"]
disabled = ["old@shop.iam.gserviceaccount.com"]
token_lifetime_seconds = 600
propagation_seconds = 60
disabled_apis = ["iamcredentials.googleapis.com"]
accept_disabled_accounts = true

[front_end]
concurrent_streams = 7
field_section_octets = 65536
stream_window_octets = 1000
connection_window_octets = 65535
padding_octets = 0
pings = false
idle_seconds = 0.5
age_seconds = 60
notice_seconds = 0

[groups]
"team@example.com" = ["person@example.com"]

[quota_projects]
shop = ["person@example.com", "principal://iam.googleapis.com/p/subject/s"]

[services.greeter]
region = "us-central1"
app = "service:app"
invokers = ["serviceAccount:batch@shop.iam.gserviceaccount.com", "group:team@example.com"]
tags = ["blue"]
domains = ["greeter.example.com"]
audiences = ["greeter"]
http2 = false
iap = true
iap_accessors = ["group:team@example.com"]
iap_clients = ["1-a.apps.googleusercontent.com"]
request_timeout_seconds = 5
max_requests = 80
cold_start_seconds = 1.5

[services.other]

[[grants]]
caller = "vm@shop.iam.gserviceaccount.com"
target = "batch@shop.iam.gserviceaccount.com"
role = "openIdTokenCreator"

[pod]
namespace = "prod"
name = "restate"
annotation = "batch@shop.iam.gserviceaccount.com"
"""


def test_everything_can_be_described() -> None:
    assert read(WHOLE) == Description(
        metadata_account="vm@shop.iam.gserviceaccount.com",
        accounts=("batch@shop.iam.gserviceaccount.com",),
        users=("person@example.com",),
        disabled=("old@shop.iam.gserviceaccount.com",),
        token_lifetime_seconds=600,
        propagation_seconds=60,
        disabled_apis=("iamcredentials.googleapis.com",),
        accept_disabled_accounts=True,
        quota_projects={"shop": ("person@example.com", "principal://iam.googleapis.com/p/subject/s")},
        front_end=Limits(
            concurrent_streams=7,
            field_section_octets=65_536,
            stream_window_octets=1000,
            connection_window_octets=65_535,
            padding_octets=0,
            pings=False,
            idle_seconds=0.5,
            age_seconds=60,
            notice_seconds=0,
        ),
        groups={"team@example.com": ("person@example.com",)},
        services=(
            ServiceDescription(
                name="greeter",
                region="us-central1",
                app="service:app",
                invokers=("serviceAccount:batch@shop.iam.gserviceaccount.com", "group:team@example.com"),
                tags=("blue",),
                domains=("greeter.example.com",),
                audiences=("greeter",),
                http2=False,
                iap=True,
                iap_accessors=("group:team@example.com",),
                iap_clients=("1-a.apps.googleusercontent.com",),
                request_timeout_seconds=5,
                max_requests=80,
                cold_start_seconds=1.5,
            ),
            ServiceDescription(name="other"),
        ),
        grants=(
            GrantDescription(
                "vm@shop.iam.gserviceaccount.com", "batch@shop.iam.gserviceaccount.com", Role.OPEN_ID_TOKEN_CREATOR
            ),
        ),
        pod=Pod(namespace="prod", name="restate", annotation="batch@shop.iam.gserviceaccount.com"),
    )


def test_the_example_has_every_key_of_a_service_and_can_be_used() -> None:
    text = (Path(__file__).parents[3] / "config" / "emulator.example.toml").read_text("utf-8")
    found = read(text)
    keys = tomllib.loads(text)["services"]["greeter"].keys() | {"app", "name"}
    assert keys == set(ServiceDescription.__dataclass_fields__)
    assert {"pod"} | tomllib.loads(text).keys() == set(Description.__dataclass_fields__)
    assert tomllib.loads(text)["front_end"].keys() == set(Limits.__dataclass_fields__)
    assert len(build(found, {service.name: echo for service in found.services})[1].services) == 2


def test_a_described_project_is_built_at_once_and_with_its_port() -> None:
    google, services = build(read(WHOLE), {"greeter": echo, "other": echo})
    greeter, other = services.services
    number = google.project_number("shop")
    url, hash_url = service_urls("greeter", "us-central1", number)
    assert url == f"https://greeter-{number}.us-central1.run.app"
    assert hash_url.startswith("https://greeter-")
    assert hash_url.endswith("-uc.a.run.app")
    set_port(services, 8443)
    assert (greeter.url, greeter.other_urls) == (f"{url}:8443", (f"{hash_url}:8443", url, hash_url))
    host = url.removeprefix("https://")
    assert {host, f"blue---{host}", "greeter.example.com"} <= greeter.names
    assert other.invokers == {"vm@shop.iam.gserviceaccount.com"}
    # The file holds from the beginning, although later changes take a minute.
    (grant,) = read(WHOLE).grants
    assert all(google.has_permission(grant.caller, permission, grant.target) for permission in grant.role.permissions)
    assert (google.propagation_seconds, google.disabled) == (60, {"old@shop.iam.gserviceaccount.com"})
    assert google.project_users == {"shop": {"person@example.com", "principal://iam.googleapis.com/p/subject/s"}}
    assert google.disabled_apis == {"iamcredentials.googleapis.com"}
    assert google.accept_disabled_accounts


def test_all_problems_are_reported_at_once_with_their_places() -> None:
    with pytest.raises(InvalidDescription) as caught:
        read("""
            colour = "blue"
            accounts = ["nobody", 7]
            token_lifetime_seconds = 0
            grants = [{caller = "", role = "owner"}, 3]
            pod = "prod"
            quota_projects = {shop = ["nobody"]}
            disabled_apis = ["IAM"]
            accept_disabled_accounts = "no"
            front_end = {connection_window_octets = 100, idle_seconds = 0, window = 1}
            [services.Greeter]
            invokers = "allUsers"
            request_timeout_seconds = "5s"
            max_requests = true
            iap_accessors = ["nobody"]
            iap_clients = [""]
            [services.other]
            port = 8080
            tags = ["Blue"]
            domains = ["a.example.com"]
            invokers = ["robot:a@example.com", "allUsers"]
            [services.blue---greeter]
            domains = ["greeter-1.europe-west1.run.app"]
            [services.third]
            domains = ["a.example.com"]
            [groups]
            "team@example.com" = ["x"]
            team = ["nobody"]
        """)
    assert sorted(caught.value.problems) == sorted(
        [
            "colour is unknown",
            "accounts[0] has to be an e-mail address",
            "accounts[1] has to be an e-mail address",
            "token_lifetime_seconds has to be a whole number from 1 to 43,200",
            "grants[0].caller has to be an e-mail address, principal://…, principalSet://… or "
            "PROJECT.svc.id.goog[NAMESPACE/NAME]",
            "grants[0].target is missing",
            "grants[0].role has to be one of tokenCreator, openIdTokenCreator, workloadIdentityUser",
            "grants[1] has to be a table",
            "grants[1].caller is missing",
            "grants[1].target is missing",
            "pod has to be a table",
            "front_end.connection_window_octets has to be a whole number from 65,535 to 2,147,483,647",
            "front_end.idle_seconds has to be a number above 0, at most 1,000,000,000",
            "front_end.window is unknown",
            "groups.team is not the e-mail address of a group",
            "groups.team[0] has to be an e-mail address",
            "quota_projects.shop[0] has to be an e-mail address or a federated principal (principal://…)",
            "disabled_apis[0] has to be a host name, such as iamcredentials.googleapis.com",
            "accept_disabled_accounts has to be true or false",
            "services.Greeter is not the name of a service: lower-case letters, digits and hyphens, but not ---",
            "services.blue---greeter is not the name of a service: lower-case letters, digits and hyphens, but not ---",
            "services.blue---greeter.domains[0] has to be a host name in lower case, and not below run.app",
            "services.Greeter.invokers has to be a list, each entry a member, such as user:a@example.com or allUsers",
            "services.Greeter.request_timeout_seconds has to be a number above 0, at most 1,000,000,000",
            "services.Greeter.iap_accessors[0] has to be a member, such as user:a@example.com or allUsers",
            "services.Greeter.iap_clients[0] has to be an OAuth client, such as 1-a.apps.googleusercontent.com",
            "services.Greeter.max_requests has to be a whole number from 1 to 2,147,483,648",
            "services.other.port is unknown",
            "services.other.tags[0] has to be a name of lower-case letters, digits and hyphens",
            "services.other.invokers[0] has to be a member, such as user:a@example.com or allUsers",
            "the domain a.example.com belongs to two services",
            "groups.team@example.com[0] has to be an e-mail address",
        ]
    )


@pytest.mark.parametrize("number", ["inf", "nan", "-inf", "1e400", "1e15"])
def test_a_number_of_seconds_is_finite_and_not_too_large(number: str) -> None:
    with pytest.raises(InvalidDescription) as caught:
        read(
            f"propagation_seconds = {number}\n[front_end]\nidle_seconds = {number}\nage_seconds = {number}\n"
            f"notice_seconds = {number}\n[services.a]\nrequest_timeout_seconds = {number}\n"
            f"cold_start_seconds = {number}\n"
        )
    assert len(caught.value.problems) == 6


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("services =", "it is not TOML"),
        (f"services = {'[' * 5_000}", "it is not TOML"),
        (f"port = {'9' * 5_000}", "it is not TOML"),
        ("", "services has to have at least one table"),
        ("services = 3", "services has to have at least one table"),
        ("grants = 3\n[services.a]", "grants has to be a list of tables"),
        ("groups = 3\n[services.a]", "groups has to be a table"),
    ],
    ids=range(7),
)
def test_a_file_of_the_wrong_form_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InvalidDescription, match=problem):
        read(text)
