"""What to tell a person when google-auth gives up: sentences of our own, with the remedy in them. Pure.

google-auth's exceptions hold whole answers, tokens included. So none of their texts is passed on, but for a few that
are known to name only files and settings; the rest comes from status and JSON error of the last answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from proxy.errors import (
    CredentialsInvalid,
    CredentialsRejected,
    Failure,
    ImpersonationDenied,
    MintRefused,
    TokenMalformed,
    TokenTimeout,
)
from proxy.quoting import plain
from proxy.tokens.adc import CredentialFile
from proxy.tokens.calls import NotConnected, Reply, clock_remark, complaint, host_of, reasons, refusal

__all__ = ["LastCall", "explain", "unloadable"]

_REJECTED: Final = frozenset({"invalid_grant", "invalid_client", "unauthorized_client", "deleted_client"})

# Messages of google-auth that hold a path or the name of a setting, and nothing that was received.
_TELLABLE: Final = re.compile(
    r"File '.*' was not found\.|Executables need to be explicitly allowed.*|Unable to determine (?:the )?AWS [a-z ]+"
    r"|Unable to parse subject_token from JSON file .*|Missing subject_token in .*|Timeout must be between .*"
    r"|No valid AWS 'credential_source' provided|The token returned by the executable is expired\."
    r"|The executable response is missing the \w+ field\.|Executable returned unsupported token type\."
)
_EXIT_CODE: Final = re.compile(r"Executable exited with non-zero return code (-?\d{1,5})\.")
_REPORTED: Final = re.compile(r"Executable returned unsuccessful response: code: ([\w.-]{1,40}),")

_QUOTED_MEMBERS: Final = ("file", "url", "environment_id", "subject_token_field_name")
"""Members of a `credential_source`, and of its `format`, that these messages quote."""

_OF_AWS: Final = "AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"

_SOURCE_URLS: Final = ("url", "region_url", "imdsv2_session_token_url")


@dataclass(frozen=True, slots=True)
class LastCall:
    """The last HTTP call that google-auth made before it gave up; no reply if it made none."""

    url: str
    reply: Reply | None

    @property
    def host(self) -> str:
        """The host that was asked."""
        return host_of(self.url)


def unloadable(file: CredentialFile, exc: Exception) -> CredentialsInvalid:
    """Return the failure for a file that google-auth cannot load."""
    if file.kind == "service_account":
        return CredentialsInvalid(f"the private_key in {file.path} is not an RSA key in PEM form; get the file anew")
    return CredentialsInvalid(f"{file.path} ({file.kind}) cannot be used{_reason(file, exc)}")


def explain(file: CredentialFile, call: LastCall, exc: Exception, now: float) -> Failure:
    """Return what happened when google-auth raised `exc`; `now` is our clock, to be compared with Google's."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, Failure):
            return _source_failed(file, cause) if _is_source(file.info, call.url) else cause
        cause = cause.__cause__
    reply = call.reply
    if reply is None:
        return _without_a_call(file, exc)
    if 200 <= reply.status < 300:
        if _TELLABLE.fullmatch(str(exc)):
            return unloadable(file, exc)
        return TokenMalformed(f"{call.host} answered {reply.status} without a token")
    if _is_source(file.info, call.url):
        return _source_refused(file, call.host, reply)
    told = _told(reply)
    if reasons(reply) & _REJECTED:
        return CredentialsRejected(_rejection(file, told, clock_remark(reply, now)))
    if "invalid_target" in reasons(reply):
        return MintRefused(
            f"the workload identity provider {_provider(file.info)}that {file.path} names does not exist, or it is "
            f"disabled{told}"
        )
    if reply.status == 403 and call.url.endswith(":generateAccessToken"):
        return ImpersonationDenied(
            f"the federated identity of {file.path} may not impersonate the service account that the file names: "
            f"grant it roles/iam.workloadIdentityUser on that account{told}"
        )
    return refusal(call.host, reply, f"look at {file.path}")


def _provider(info: Mapping[str, Any]) -> str:
    audience = info.get("audience")
    return f"{audience} " if isinstance(audience, str) and plain(audience) is not None else ""


def _told(reply: Reply) -> str:
    said = complaint(reply)
    return f" ({said})" if said else ""


def _reason(file: CredentialFile, exc: Exception) -> str:
    """Return an exception of google-auth in words: its own, if they hold only names and paths, else its type."""
    text = str(exc)
    source = file.info.get("credential_source")
    form = source.get("format") if isinstance(source, dict) else None
    quotes = [part.get(name) for part in (source, form) if isinstance(part, dict) for name in _QUOTED_MEMBERS]
    if not _TELLABLE.fullmatch(text) or any(value is not None and plain(value) is None for value in quotes):
        return f" ({type(exc).__name__})"
    return f": {text}"


def _without_a_call(file: CredentialFile, exc: Exception) -> Failure:
    """Return what went wrong on this machine, where a subject token comes from a file or an executable."""
    if "executable" not in file.info.get("credential_source", {}):
        if isinstance(exc, OSError):
            return CredentialsInvalid(f"the subject token's file in {file.path} cannot be read: {exc.strerror}")
        if isinstance(exc, UnicodeDecodeError):
            return CredentialsInvalid(f"the subject token's file in {file.path} is not text")
        return unloadable(file, exc)
    whose = f"the executable in {file.path}"
    if type(exc).__name__ == "TimeoutExpired":
        return TokenTimeout(f"{whose} gave no subject token in time")
    if isinstance(exc, OSError):
        return CredentialsInvalid(f"{whose} cannot be started: {exc.strerror}")
    if isinstance(exc, ValueError) and type(exc).__name__ in ("JSONDecodeError", "UnicodeDecodeError"):
        return CredentialsInvalid(f"{whose} printed something other than JSON")
    if ended := _EXIT_CODE.match(str(exc)):
        return CredentialsInvalid(f"{whose} ended with exit code {ended[1]}; run it by hand to see why")
    if reported := _REPORTED.match(str(exc)):
        return CredentialsInvalid(f"{whose} reports a failure (code {reported[1]}); run it by hand to see why")
    return unloadable(file, exc)


def _is_source(info: Mapping[str, Any], url: str) -> bool:
    source = info.get("credential_source")
    if not isinstance(source, dict):
        return False
    return any(isinstance(source.get(name), str) and url.startswith(source[name]) for name in _SOURCE_URLS)


def _source_failed(file: CredentialFile, cause: Failure) -> Failure:
    """Return what to do when the metadata server of another cloud, or an identity provider's URL, gives no answer."""
    unreached = isinstance(cause, NotConnected)
    if "environment_id" in file.info["credential_source"]:
        what = (
            f"{file.path} takes the identity of this machine from AWS' metadata server (EC2), which gave none: {cause}"
        )
        if not unreached:
            return type(cause)(what)
        # As long as this runs where it runs, that stays so.
        return CredentialsInvalid(
            f"{what}. Where there is none (Fargate, EKS, Lambda), set {_OF_AWS}; container credentials "
            "(AWS_CONTAINER_CREDENTIALS_RELATIVE_URI, AWS_CONTAINER_CREDENTIALS_FULL_URI, AWS_WEB_IDENTITY_TOKEN_FILE) "
            "are not read, so hand them over in these variables. In a container on EC2, raise the metadata server's "
            "hop limit to 2"
        )
    what = f"{file.path} takes its subject token from a URL (credential_source), which gave none: {cause}"
    if unreached and str(cause).startswith("169.254."):
        return CredentialsInvalid(f"{what}. Is this a machine of the cloud that the file was made for?")
    return type(cause)(what)


def _source_refused(file: CredentialFile, host: str, reply: Reply) -> Failure:
    """Return what to do when the metadata server of another cloud, or an identity provider's URL, says no."""
    source = file.info["credential_source"]
    if "environment_id" in source:
        if reply.status == 401 and "imdsv2_session_token_url" not in source:
            return CredentialsInvalid(
                f"AWS' metadata server wants a session token (IMDSv2): {file.path} lacks imdsv2_session_token_url; "
                f"create it again with --enable-imdsv2{_told(reply)}"
            )
        if reply.status == 404:
            return MintRefused(
                f"AWS' metadata server has no credentials for {file.path} (404): attach an IAM role to this machine, "
                f"or set {_OF_AWS}{_told(reply)}"
            )
    path = urlsplit(str(source.get("url", ""))).path
    where = path if path and plain(path) is not None else "its URL"
    what = f"{host} (credential_source of {file.path})"
    return refusal(what, reply, f"is {where} right, and does this machine have an identity there?")


def _rejection(file: CredentialFile, told: str, clock: str) -> str:
    match file.kind:
        case "service_account":
            why = clock or "it was deleted or disabled; create a new key"
            return f"Google does not take the key in {file.path}{told}: {why}"
        case "external_account":
            vouched = f"Google does not take what the identity provider in {file.path} vouches for{told}"
            return f"{vouched}: {clock}" if clock else vouched
        case _:
            return (
                f"Google does not take the user credentials in {file.path}{told}: run `gcloud auth "
                "application-default login`"
            )
