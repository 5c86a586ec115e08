"""One file that describes an emulated project: services, accounts, users, groups and grants (TOML).

`read` checks the whole file and reports all problems at once. Every key is optional, but there is at least one service.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from proxy.emulator.google import METADATA_ACCOUNT
from proxy.emulator.limits import RANGES, Limits
from proxy.emulator.model import Pod, Role

__all__ = [
    "CALLER",
    "DURATION",
    "FLAG",
    "MAX_LIFETIME_SECONDS",
    "MOST_COUNT",
    "MOST_SECONDS",
    "POSITIVE_DURATION",
    "ROLES",
    "Description",
    "GrantDescription",
    "InvalidDescription",
    "ServiceDescription",
    "is_caller",
    "is_email",
    "is_flag",
    "is_member",
    "is_number",
    "is_principal",
    "read",
    "whole",
]

ROLES: Final[Mapping[str, Role]] = {
    "tokenCreator": Role.TOKEN_CREATOR,
    "openIdTokenCreator": Role.OPEN_ID_TOKEN_CREATOR,
    "workloadIdentityUser": Role.WORKLOAD_IDENTITY_USER,
}
"""Short names of the roles on a service account."""

MAX_LIFETIME_SECONDS: Final = 43_200
"""The longest lifetime of a token, 12 hours."""

MOST_SECONDS: Final = 1_000_000_000
"""The most seconds of any setting, 31 years: no time becomes one that Python, TLS or HTTP cannot express."""
MOST_COUNT: Final = 1 << 31
"""The most of anything that is counted."""

EMAIL: Final = re.compile(r"[^@\s/:]+@[^@\s/:]+\.[^@\s/:]+")
NAME: Final = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
HOST: Final = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}")
APPLICATION: Final = re.compile(r"[\w.]+:\w+")
CALLER: Final = "an e-mail address, principal://…, principalSet://… or PROJECT.svc.id.goog[NAMESPACE/NAME]"
"""The form of the caller of a grant."""

POD: Final = re.compile(r"[a-z0-9.:-]+\.svc\.id\.goog\[[a-z0-9-]+/[a-z0-9.-]+\]")
MEMBER: Final = "a member, such as user:a@example.com or allUsers"
DEFAULT_LIMITS: Final = Limits()
MEMBER_KINDS: Final = frozenset({"user", "serviceAccount", "group", "domain"})
EVERYBODY: Final = frozenset({"allUsers", "allAuthenticatedUsers"})


class InvalidDescription(Exception):
    """The file cannot be used."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        """All that is wrong: one sentence each, with the place in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDescription:
    """One Cloud Run service: `[services.NAME]`."""

    name: str
    """Its name: lower-case letters, digits and hyphens."""
    region: str = "europe-west1"
    """The region in its URLs."""
    app: str | None = None
    """`MODULE:ATTR` of the ASGI application in its container; None: an application that describes the request."""
    invokers: tuple[str, ...] | None = None
    """Who may call, as in IAM policies; None: the account of the metadata server."""
    tags: tuple[str, ...] = ()
    """Traffic tags, each with a URL of its own."""
    domains: tuple[str, ...] = ()
    """Custom domains."""
    audiences: tuple[str, ...] = ()
    """Custom audiences."""
    http2: bool = True
    """False: deployed without `--use-http2`, with a container that speaks only HTTP/2."""
    iap: bool = False
    """Whether Identity-Aware Proxy (IAP) is in front of it."""
    iap_accessors: tuple[str, ...] = ()
    """Who passes IAP: members with roles/iap.httpsResourceAccessor."""
    iap_clients: tuple[str, ...] = ()
    """OAuth clients whose ID tokens IAP accepts."""
    request_timeout_seconds: float = 300.0
    """The time for a whole request."""
    max_requests: int | None = None
    """Number of requests that it takes at a time."""
    cold_start_seconds: float = 0.0
    """How long a request waits while no other one is open."""


class GrantDescription(NamedTuple):
    """A role of a caller on a service account: `[[grants]]`."""

    caller: str
    """E-mail of an account or a user, a federated principal, or `PROJECT.svc.id.goog[NAMESPACE/NAME]`."""
    target: str
    """E-mail of the service account."""
    role: Role
    """The role."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """All of the file."""

    services: tuple[ServiceDescription, ...]
    """The services."""
    metadata_account: str = METADATA_ACCOUNT
    """The account of the metadata server; its project is the project of everything."""
    accounts: tuple[str, ...] = ()
    """Further service accounts, each of which gets a key file."""
    users: tuple[str, ...] = ()
    """Users, each of which gets the credentials of `gcloud auth login`."""
    disabled: tuple[str, ...] = ()
    """Accounts and users that are disabled."""
    groups: Mapping[str, tuple[str, ...]]
    """Google groups: e-mail → members."""
    quota_projects: Mapping[str, tuple[str, ...]]
    """Who may use a project as quota project besides its own accounts, id → principals; of others: all."""
    disabled_apis: tuple[str, ...] = ()
    """Host names of APIs that are not enabled in any project."""
    grants: tuple[GrantDescription, ...] = ()
    """Roles on service accounts."""
    pod: Pod | None = None
    """The pod of GKE that the metadata server speaks for."""
    token_lifetime_seconds: int = 3600
    """Lifetime of ID tokens and access tokens."""
    accept_disabled_accounts: bool = False
    """Whether Cloud Run accepts the ID tokens of disabled accounts until they expire."""
    propagation_seconds: float = 0.0
    """How long changes of grants and invokers take."""
    front_end: Limits = DEFAULT_LIMITS
    """What the front end advertises and does on each connection: `[front_end]`."""


class _Table:
    """One table of the file: returns checked values, and collects problems."""

    def __init__(self, values: object, place: str, problems: list[str]) -> None:
        self.place = place
        self.problems = problems
        self._rest: dict[str, Any] = {}
        if isinstance(values, dict):
            self._rest = dict(values)
        else:
            self.problem("", "has to be a table")

    def problem(self, key: str, sentence: str) -> None:
        """Add a problem with a key of this table."""
        name = ".".join(filter(None, (self.place, key)))
        self.problems.append(f"{name} {sentence}")

    @property
    def names(self) -> list[str]:
        """The keys that were not read yet."""
        return list(self._rest)

    def has(self, key: str) -> bool:
        """Return whether the file has the key, which was not read yet."""
        return key in self._rest

    def raw(self, key: str, default: Any) -> Any:
        """Return the value as it is in the file, and mark the key as known."""
        return self._rest.pop(key, default)

    def get(self, key: str, default: Any, is_valid: Callable[[Any], bool], form: str) -> Any:
        """Return the value; the default if the key is missing or its value is not valid."""
        value = self._rest.pop(key, default)
        if value is default or is_valid(value):
            return value
        self.problem(key, f"has to be {form}")
        return default

    def texts(self, key: str, is_valid: Callable[[str], bool], form: str) -> tuple[str, ...]:
        """Return a list of texts as a tuple; empty if the key is missing."""
        values = self._rest.pop(key, [])
        if not isinstance(values, list):
            self.problem(key, f"has to be a list, each entry {form}")
            return ()
        for index, value in enumerate(values):
            if not isinstance(value, str) or not is_valid(value):
                self.problem(f"{key}[{index}]", f"has to be {form}")
        return tuple(value for value in values if isinstance(value, str) and is_valid(value))

    def end(self) -> None:
        """Report the keys that nobody asked for."""
        for key in self._rest:
            self.problem(key, "is unknown")


def read(text: str) -> Description:
    """Return the description in the text of a file; raises InvalidDescription with all problems."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:  # also of Python: a number of thousands of digits, lists in each other
        raise InvalidDescription([f"it is not TOML: {exc}"]) from None
    problems: list[str] = []
    table = _Table(document, "", problems)
    services = table.raw("services", {})
    if not isinstance(services, dict) or not services:
        problems.append("services has to have at least one table, such as [services.greeter]")
        services = {}
    groups, quota_projects = table.raw("groups", {}), table.raw("quota_projects", {})
    pod, grants = table.raw("pod", None), table.raw("grants", [])
    if not isinstance(grants, list):
        problems.append("grants has to be a list of tables: [[grants]]")
        grants = []
    email = "an e-mail address"
    found = Description(
        services=tuple(_service(_Table(value, f"services.{name}", problems), name) for name, value in services.items()),
        metadata_account=table.get("metadata_account", METADATA_ACCOUNT, is_email, email),
        accounts=table.texts("accounts", is_email, email),
        users=table.texts("users", is_email, email),
        disabled=table.texts("disabled", is_email, email),
        groups=_groups(_Table(groups, "groups", problems)),
        quota_projects=_quota_projects(_Table(quota_projects, "quota_projects", problems)),
        disabled_apis=table.texts(
            "disabled_apis", _matches(HOST), "a host name, such as iamcredentials.googleapis.com"
        ),
        grants=tuple(_grant(_Table(value, f"grants[{index}]", problems)) for index, value in enumerate(grants)),
        pod=None if pod is None else _pod(_Table(pod, "pod", problems)),
        token_lifetime_seconds=table.get("token_lifetime_seconds", 3600, *whole(1, MAX_LIFETIME_SECONDS)),
        accept_disabled_accounts=table.get("accept_disabled_accounts", False, *FLAG),
        propagation_seconds=table.get("propagation_seconds", 0.0, *DURATION),
        front_end=_limits(_Table(table.raw("front_end", {}), "front_end", problems)),
    )
    domains = Counter(domain for service in found.services for domain in service.domains)
    problems += [f"the domain {domain} belongs to two services" for domain, count in domains.items() if count > 1]
    table.end()
    if problems:
        raise InvalidDescription(problems)
    return found


def _groups(table: _Table) -> dict[str, tuple[str, ...]]:
    for name in table.names:
        if not is_email(name):
            table.problem(name, "is not the e-mail address of a group")
    return {name: table.texts(name, is_email, "an e-mail address") for name in table.names}


def _quota_projects(table: _Table) -> dict[str, tuple[str, ...]]:
    form = "an e-mail address or a federated principal (principal://…)"
    return {name: table.texts(name, is_principal, form) for name in table.names}


def _service(table: _Table, name: str) -> ServiceDescription:
    if not NAME.fullmatch(name) or "---" in name:  # which separates a tag from the name
        table.problem("", "is not the name of a service: lower-case letters, digits and hyphens, but not ---")
    given = table.has("invokers")
    invokers = table.texts("invokers", is_member, MEMBER)
    found = ServiceDescription(
        name=name,
        region=table.get("region", "europe-west1", _matches(NAME), "the name of a region"),
        app=table.get("app", None, _matches(APPLICATION), "MODULE:ATTR, as in service:app"),
        invokers=invokers if given else None,
        tags=table.texts("tags", _matches(NAME), "a name of lower-case letters, digits and hyphens"),
        domains=table.texts("domains", _is_domain, "a host name in lower case, and not below run.app"),
        audiences=table.texts("audiences", bool, "a text that is not empty"),
        http2=table.get("http2", True, *FLAG),
        iap=table.get("iap", False, *FLAG),
        iap_accessors=table.texts("iap_accessors", is_member, MEMBER),
        iap_clients=table.texts("iap_clients", bool, "an OAuth client, such as 1-a.apps.googleusercontent.com"),
        request_timeout_seconds=table.get("request_timeout_seconds", 300.0, *POSITIVE_DURATION),
        max_requests=table.get("max_requests", None, *whole(1, MOST_COUNT)),
        cold_start_seconds=table.get("cold_start_seconds", 0.0, *DURATION),
    )
    table.end()
    return found


def _grant(table: _Table) -> GrantDescription:
    missing = object()
    caller = table.get("caller", missing, is_caller, CALLER)
    target = table.get("target", missing, is_email, "an e-mail address")
    for key, value in (("caller", caller), ("target", target)):
        if value is missing and not any(problem.startswith(f"{table.place}.{key} ") for problem in table.problems):
            table.problem(key, "is missing")
    role = table.get(
        "role", "tokenCreator", lambda value: isinstance(value, str) and value in ROLES, f"one of {', '.join(ROLES)}"
    )
    table.end()
    return GrantDescription(str(caller), str(target), ROLES[role])


def _limits(table: _Table) -> Limits:
    forms = {name: whole(*RANGES[name]) for name in RANGES}
    forms |= dict.fromkeys(("idle_seconds", "age_seconds"), POSITIVE_DURATION)
    forms |= {"notice_seconds": DURATION, "pings": FLAG}
    found = {name: table.get(name, getattr(DEFAULT_LIMITS, name), *form) for name, form in forms.items()}
    table.end()
    return Limits(**found)


def _pod(table: _Table) -> Pod:
    pod = Pod(
        namespace=table.get("namespace", "default", _matches(NAME), "a name"),
        name=table.get("name", "default", _matches(NAME), "a name"),
        annotation=table.get("annotation", None, is_email, "an e-mail address"),
    )
    table.end()
    return pod


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def is_email(value: Any) -> bool:
    """Return True if a value is an e-mail address."""
    return isinstance(value, str) and EMAIL.fullmatch(value) is not None


def is_principal(value: Any) -> bool:
    """Return True if a value is an e-mail address or a federated principal."""
    return is_email(value) or (isinstance(value, str) and value.startswith("principal://"))


def is_caller(value: Any) -> bool:
    """Return True if a value can have a role on a service account."""
    return is_principal(value) or (
        isinstance(value, str) and (value.startswith("principalSet://") or POD.fullmatch(value) is not None)
    )


def is_member(value: str) -> bool:
    """Return True if a text can be an invoker: an e-mail, or a member as in IAM policies."""
    kind, colon, name = value.partition(":")
    if value in EVERYBODY or not colon:
        return value in EVERYBODY or is_email(value)
    return kind in MEMBER_KINDS and (HOST if kind == "domain" else EMAIL).fullmatch(name) is not None


def _is_domain(value: str) -> bool:
    return HOST.fullmatch(value) is not None and not value.endswith(".run.app")


def is_flag(value: Any) -> bool:
    """Return True for true and false."""
    return isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return True for a number of seconds, also before now: finite, and at most MOST_SECONDS either way."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -MOST_SECONDS <= value <= MOST_SECONDS


FLAG: Final = (is_flag, "true or false")
"""What checks a flag, and its form in words."""
DURATION: Final = (lambda value: is_number(value) and value >= 0, f"a number from 0 to {MOST_SECONDS:,}")
"""What checks a duration in seconds, and its form."""
POSITIVE_DURATION: Final = (
    lambda value: is_number(value) and value > 0,
    f"a number above 0, at most {MOST_SECONDS:,}",
)
"""What checks a duration that is not 0, and its form."""


def whole(least: int, most: int) -> tuple[Callable[[Any], bool], str]:
    """Return what checks a whole number in this range, and its form in words."""

    def is_valid(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return is_valid, f"a whole number from {least:,} to {most:,}"
