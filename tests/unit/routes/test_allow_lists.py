"""What may stand in the lists of `[deployments]`, and which hosts an entry includes."""

from __future__ import annotations

import pytest

from proxy.routes import AllowLists
from proxy.routes.allow_lists import check_audience_pair, check_host

NUMBER = "123456789012"
PROJECT = f"{NUMBER}.europe-west1.run.app"
WILDCARD = f"*-{PROJECT}"


@pytest.mark.parametrize(
    "host",
    [
        f"greeter-{PROJECT}",
        "greeter-abcdefghij-ew.a.run.app",
        "greeter.example.com",
        "xn--bcher-kva.example",
        WILDCARD,
        "*-123456789012.northamerica-northeast1.run.app",
    ],
)
def test_service_names_and_a_project_wildcard_are_accepted(host: str) -> None:
    assert check_host(host) == host


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("*", "other people's projects"),
        ("*.run.app", "other people's projects"),
        ("*.a.run.app", "other people's projects"),
        ("*-ew.a.run.app", "other people's projects"),
        ("*.europe-west1.run.app", "other people's projects"),
        ("greeter-*.europe-west1.run.app", "other people's projects"),
        (f"*{PROJECT}", "other people's projects"),
        (f"*-{NUMBER}.*.run.app", "other people's projects"),
        (f"**-{PROJECT}", "other people's projects"),
        ("*-12345.europe-west1.run.app", "other people's projects"),
        ("*.example.com", "not supported"),
        (f"*-{PROJECT}.example.com", "not supported"),
        ("127.0.0.1", "is an address"),
        ("127.1", "is an address"),
        ("2130706433", "is an address"),
        ("0x7f000001", "is an address"),
        ("0x", "is an address"),
        ("169.254.169.254", "is an address"),
        ("::1", "is an address"),
        ("[::ffff:169.254.169.254]", "is an address"),
        ("localhost", "this machine"),
        ("greeter.localhost", "this machine"),
        ("metadata", "metadata server"),
        ("metadata.goog", "metadata server"),
        ("metadata.google.internal", "metadata server"),
        ("iamcredentials.googleapis.com", "API of Google"),
        ("googleapis.com", "API of Google"),
        ("greeter", "not the full name"),
        ("greeter..example.com", "not the full name"),
        ("-greeter.example.com", "not the full name"),
        ("", "not the full name"),
        ("a." * 130 + "com", "not the full name"),
        ("Greeter.example.com", "lower case"),
        ("greeter.example.com.", "end with a dot"),
        ("https://greeter.example.com", "host name alone"),
        ("greeter.example.com/base", "host name alone"),
        ("greeter.example.com:443", "host name alone"),
        ("user@greeter.example.com", "host name alone"),
        ("greeter.example.com ", "host name alone"),
        ("bücher.example", "xn--"),
        ("greeter.run.app\u3002", "xn--"),
    ],
)
def test_any_other_entry_is_refused_with_the_reason(host: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_host(host)


def test_a_refused_wildcard_is_quoted_and_a_pasted_secret_is_not() -> None:
    with pytest.raises(ValueError, match=r"'\*\.run\.app'"):
        check_host("*.run.app")
    secret = "*ya29.a0AfH6SMBx7KpQ9vLr2TzYw8NfDcEgHiJkMnOpQrStUvWx"
    with pytest.raises(ValueError, match="not shown") as refused:
        check_host(secret)
    assert secret[1:] not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        (f"greeter-{PROJECT}", True),
        (f"greeter-2-{PROJECT}", True),
        (f"canary---greeter-{PROJECT}", True),
        (f"9-{PROJECT}", True),
        (PROJECT, False),
        (f"-{PROJECT}", False),
        (f"greeter--{PROJECT}", False),
        (f"evil.greeter-{PROJECT}", False),
        (f"evil/greeter-{PROJECT}", False),
        (f"greeter-{PROJECT}.evil.example", False),
        (f"greeter-{PROJECT}.", False),
        (f"greeter-{PROJECT}:443", False),
        (f"greeter-9{PROJECT}", False),
        (f"greeter-{NUMBER}-9.europe-west1.run.app", False),
        (f"greeter-{NUMBER}.europe-west2.run.app", False),
        (f"greeter-{NUMBER}.europe-west1.run.app.run.app", False),
        (f"{'a' * 50}-{PROJECT}", True),
        (f"{'a' * 51}-{PROJECT}", False),
        (WILDCARD, False),
        ("", False),
    ],
)
def test_a_wildcard_includes_the_services_of_its_project_and_region_alone(host: str, allowed: bool) -> None:
    assert AllowLists((WILDCARD,)).allows_host(host) is allowed


def test_an_exact_name_includes_itself_alone() -> None:
    lists = AllowLists(("greeter.example.com",))
    assert lists.allows_host("greeter.example.com")
    assert not lists.allows_host("x.greeter.example.com")
    assert not AllowLists().allows_host("greeter.example.com")


@pytest.mark.parametrize(
    "pair",
    [
        "greeter.example.com=anything",
        "greeter.example.com=https://greeter-abc-ew.a.run.app",
        "greeter.example.com=name=value",
        f"greeter-{PROJECT}=https://greeter.example.com",
        f"greeter-{PROJECT}=https://greeter-{PROJECT}/",
        f"canary---greeter-{PROJECT}=https://greeter-{PROJECT}",
    ],
)
def test_an_audience_belongs_to_one_host(pair: str) -> None:
    assert check_audience_pair(pair, (WILDCARD, "greeter.example.com")) == pair


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ("https://greeter.example.com", "must be HOST=AUDIENCE"),
        ("=https://greeter.example.com", "must be HOST=AUDIENCE"),
        (f"{WILDCARD}=x", "is a wildcard"),
        ("127.0.0.1=x", "is an address"),
        ("greeter.example.com=", "visible ASCII"),
        ("greeter.example.com=a b", "visible ASCII"),
        ("other.example.com=x", "is not in hosts"),
        (f"greeter-{PROJECT}=https://billing-{PROJECT}", "another service"),
        (f"greeter-{PROJECT}=https://billing-{PROJECT}/x", "another service"),
        (f"greeter-{PROJECT}=https://greeter-abcdefghij-ew.a.run.app", "another service"),
        (f"billing---greeter-{PROJECT}=https://billing-{PROJECT}", "another service"),
    ],
)
def test_a_pair_that_would_give_a_token_away_or_has_no_effect_is_refused(pair: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_audience_pair(pair, (WILDCARD, "greeter.example.com"))


def test_a_pair_is_not_compared_with_invalid_hosts() -> None:
    assert check_audience_pair("greeter.example.com=x", None) == "greeter.example.com=x"
