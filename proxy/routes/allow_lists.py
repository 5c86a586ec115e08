"""What deployments may choose themselves: the lists of the settings, and the rules for their entries. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from proxy.quoting import holds_credential, plain, quoted
from proxy.routes.authentication import check_audience
from proxy.routes.locality import address_of, is_localhost_name

__all__ = ["AllowLists", "check_audience_pair", "check_host"]

_LABEL: Final = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})+")

_PROJECT_WILDCARD: Final = re.compile(r"\*-[0-9]{6,19}\.[a-z]+(?:-[a-z]+)+[0-9]{1,2}\.run\.app")
"""The deterministic URLs of one project in one region: Cloud Run appends the project's number to a service's name."""

_SERVICE: Final = re.compile(r"([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)-([0-9]{6,19})")
_LONGEST_LABEL: Final = 63

_ONE_PROJECT: Final = "write exact names, or the wildcard of one project in one region: *-PROJECT_NUMBER.REGION.run.app"

_METADATA_SERVERS: Final = frozenset(("metadata.goog", "metadata.google.internal"))

_CLOUD_RUN: Final = ".run.app"
_URL_HOST: Final = re.compile(r"https://([a-z0-9.-]+)")

_TAG: Final = "---"
"""Between a traffic tag and the name of its service, in the host name of the tag."""


@dataclass(frozen=True, slots=True)
class AllowLists:
    """What deployments may choose: hosts, accounts and audiences. Nothing is allowed by default."""

    hosts: tuple[str, ...] = ()
    """Host names of services, and wildcards of one project's URLs in one region."""
    accounts: tuple[str, ...] = ()
    """E-mails of the service accounts that may be impersonated, or be delegates."""
    audiences: tuple[str, ...] = ()
    """`HOST=AUDIENCE`: an audience that tokens for this host may have instead of its origin."""

    def allows_host(self, host: str) -> bool:
        """Return True if `host`, in lower case, is in `hosts`, or is a URL of a project that is."""
        if host in self.hosts:
            return "*" not in host
        label, _, domain = host.partition(".")
        found = _SERVICE.fullmatch(label)
        # The number of the project follows the last hyphen, for any name of the service.
        return found is not None and len(label) <= _LONGEST_LABEL and f"*-{found[2]}.{domain}" in self.hosts


def check_host(host: str) -> str:
    """Return `host`; ValueError with a sentence unless it may be an entry of `hosts`."""
    shown = _shown(host)
    if not host.isascii():
        raise ValueError(f"{shown} is not ASCII; write the name as DNS has it (xn--…)")
    if re.search(r"[/:@?#\[\]\s]", host) and (address_of(host.strip("[]")) is None):
        raise ValueError(f"{shown} must be a host name alone: no scheme, port, path, user name or blank")
    if host != host.lower():
        raise ValueError(f"{shown} must be in lower case")
    if host.endswith("."):
        raise ValueError(f"{shown} must not end with a dot")
    if "*" in host:
        return _check_wildcard(host, shown)
    last = host.rpartition(".")[2]
    if address_of(host.strip("[]")) is not None or re.fullmatch(r"[0-9]+|0x[0-9a-f]*", last):
        raise ValueError(f"{shown} is an address; a service of Cloud Run has a name, for which its certificate is made")
    if is_localhost_name(host):
        raise ValueError(f"{shown} is this machine, not a service of Cloud Run; for a local service there are routes")
    if host == "metadata" or host in _METADATA_SERVERS or host.endswith(".google.internal"):
        raise ValueError(f"{shown} is the metadata server, which gives away credentials; it is never an upstream")
    if host == "googleapis.com" or host.endswith(".googleapis.com"):
        raise ValueError(f"{shown} is an API of Google, not a service of Cloud Run")
    if holds_credential(host) or not _HOST.fullmatch(host):
        raise ValueError(f"{shown} is not the full name of a host, such as greeter-123456789012.europe-west1.run.app")
    return host


def _shown(host: str) -> str:
    """Return a host as it may stand in a sentence, a wildcard's star included."""
    return quoted(host) if "*" not in host or plain(host.replace("*", "")) is None else repr(host)


def _check_wildcard(host: str, shown: str) -> str:
    if _PROJECT_WILDCARD.fullmatch(host):
        return host
    if host == "*" or host.endswith(_CLOUD_RUN):
        raise ValueError(
            f"{shown} includes services of other people's projects, and a deployment there would get your tokens; "
            f"{_ONE_PROJECT}"
        )
    raise ValueError(f"{shown} is a wildcard that is not supported; {_ONE_PROJECT}")


def check_audience_pair(pair: str, hosts: tuple[str, ...] | None) -> str:
    """Return `pair`; ValueError with a sentence unless it may be an entry of `audiences`.

    `hosts` are the entries of that list; None if they are wrong themselves, and not to be compared with.
    """
    host, equals, audience = pair.partition("=")
    if not equals or not host:
        raise ValueError(f"{quoted(pair)} must be HOST=AUDIENCE: the audience of tokens for one host")
    if "*" in host:
        raise ValueError(f"{_shown(host)} is a wildcard: an audience belongs to one service, so write its exact name")
    check_host(host)
    try:
        check_audience(audience)
    except ValueError as exc:
        raise ValueError(f"the audience of {host} {exc}") from None
    if hosts is not None and not AllowLists(hosts).allows_host(host):
        raise ValueError(f"{host} is not in hosts; add it there as well")
    other = _URL_HOST.match(audience)
    same = (host, host.rpartition(_TAG)[2])
    if other is not None and other[1] not in same and host.endswith(_CLOUD_RUN) and other[1].endswith(_CLOUD_RUN):
        raise ValueError(
            f"{host} would get tokens for {other[1]}, which is another service, and could use them there; "
            "leave the pair out: a service takes tokens for its own URL"
        )
    return pair
