"""One credential file of each kind that Google's libraries read. The emulator accepts all of them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from proxy.emulator.certificates import write_secret
from proxy.emulator.clouds import REGION, ROLE, SUBJECT
from proxy.emulator.federation import AWS_TYPE, ID_TOKEN_TYPE, JWT_TYPE, Provider
from proxy.emulator.google import TOKEN_ENDPOINT, WORKFORCE_ENDPOINT, Google
from proxy.emulator.google_server import GoogleServer

__all__ = ["CredentialFiles", "CredentialKind", "GeneratedCredentials"]

TOKEN_EXCHANGE: Final = "https://sts.googleapis.com/v1/token"  # noqa: S105 – an address
IAM: Final = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts"
PERSON: Final = "person@example.com"
WORKFORCE_MEMBER: Final = (
    "principal://iam.googleapis.com/locations/global/workforcePools/emulated/subject/member@example.com"
)
POD: Final = "system:serviceaccount:default:pod"
POD_SECONDS: Final = 24 * 3600
VERIFICATION_URL: Final = "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15"

CredentialKind = str
"""Name of one of `CredentialFiles.KINDS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedCredentials:
    """A credential file that was written."""

    file: Path
    """Its path, for `GOOGLE_APPLICATION_CREDENTIALS`."""
    principal: str
    """Its principal in IAM: the caller of a grant."""
    environment: Mapping[str, str] = field(repr=False, default_factory=dict)
    """Environment variables that the file needs."""


class CredentialFiles:
    """Writes credential files into a folder, readable by their owner only.

    A file names the addresses of `server`; with `by_name` it names Google's hosts, which DNS has to resolve to it.
    Files for user credentials and impersonation always lead to Google's hosts, because they cannot name others. A
    cluster's subject token is valid for a day.
    """

    def __init__(
        self, folder: Path, google: Google, server: GoogleServer, *, account: str, by_name: bool = False
    ) -> None:
        self._folder = folder
        self._google = google
        self._plain = f"http://{server.metadata_address}"
        self._account = account
        self._token_uri = TOKEN_ENDPOINT if by_name else server.token_uri
        self._token_url = TOKEN_EXCHANGE if by_name else server.token_url
        self._workforce_url = WORKFORCE_ENDPOINT if by_name else f"https://{server.tls_address}/v1/oauthtoken"

    def write(self, kind: CredentialKind) -> GeneratedCredentials:
        """Write the file of one kind, and the files that it refers to; raises KeyError for an unknown kind.

        `service-account-key` is a key of `account`. `impersonated-service-account` and `external-account-impersonating`
        impersonate `account`, and get the role for it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._WRITERS[kind](self, kind)

    def _service_account_key(self, kind: CredentialKind) -> GeneratedCredentials:
        return self._write(kind, self._google.key_file(self._account, self._token_uri), self._account)

    def _authorized_user(self, kind: CredentialKind) -> GeneratedCredentials:
        return self._write(kind, self._google.user_file(PERSON), PERSON)

    def _workforce_user(self, kind: CredentialKind) -> GeneratedCredentials:
        return self._write(kind, self._google.workforce_file(WORKFORCE_MEMBER, self._workforce_url), WORKFORCE_MEMBER)

    def _impersonated(self, kind: CredentialKind) -> GeneratedCredentials:
        user = self._google.user_file(PERSON)
        self._google.allow_impersonation(PERSON, self._account)
        info: dict[str, object] = {"type": "impersonated_service_account", "source_credentials": user, "delegates": []}
        return self._write(kind, info | self._impersonating(), self._account)

    def _file(self, kind: CredentialKind, **more: object) -> GeneratedCredentials:
        source = {"file": str(self._pod_token()), "format": {"type": "text"}}
        return self._federated(kind, self._google.federation.cluster, POD, JWT_TYPE, source, **more)

    def _federated_impersonating(self, kind: CredentialKind) -> GeneratedCredentials:
        written = self._file(kind, **self._impersonating())
        self._google.allow_impersonation(written.principal, self._account)
        return replace(written, principal=self._account)

    def _url(self, kind: CredentialKind) -> GeneratedCredentials:
        azure = self._google.federation.azure
        source = {
            "url": f"{self._plain}/metadata/identity/oauth2/token?api-version=2018-02-01&resource={azure.accepts[0]}",
            "headers": {"Metadata": "true"},
            "format": {"type": "json", "subject_token_field_name": "access_token"},
        }
        return self._federated(kind, azure, SUBJECT, JWT_TYPE, source)

    def _executable(self, kind: CredentialKind) -> GeneratedCredentials:
        script = self._folder / "subject-token.sh"
        answer = f'{{"version": 1, "success": true, "token_type": "{ID_TOKEN_TYPE}", "id_token": "%s"}}'
        write_secret(
            script, f"#!/bin/sh\nprintf '{answer}' \"$(cat {shlex.quote(str(self._pod_token()))})\"\n".encode()
        )
        script.chmod(0o700)
        source = {"executable": {"command": shlex.quote(str(script)), "timeout_millis": 5000}}
        written = self._federated(kind, self._google.federation.cluster, POD, ID_TOKEN_TYPE, source)
        return replace(written, environment={"GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES": "1"})

    def _aws_metadata(self, kind: CredentialKind) -> GeneratedCredentials:
        aws = self._google.federation.aws
        source = {
            "environment_id": "aws1",
            "region_url": f"{self._plain}/latest/meta-data/placement/availability-zone",
            "url": f"{self._plain}/latest/meta-data/iam/security-credentials",
            "imdsv2_session_token_url": f"{self._plain}/latest/api/token",
            "regional_cred_verification_url": VERIFICATION_URL,
        }
        return self._federated(kind, aws, aws.role_arn(ROLE), AWS_TYPE, source)

    def _aws_keys(self, kind: CredentialKind) -> GeneratedCredentials:
        aws = self._google.federation.aws
        key = aws.user_key("developer")
        source = {"environment_id": "aws1", "regional_cred_verification_url": VERIFICATION_URL}
        written = self._federated(kind, aws, key.arn, AWS_TYPE, source)
        environment = {
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": key.access_key_id,
            "AWS_SECRET_ACCESS_KEY": key.secret_access_key,
        }
        return replace(written, environment=environment)

    def _federated(
        self,
        kind: CredentialKind,
        provider: Provider,
        subject: str,
        token_type: str,
        source: Mapping[str, Any],
        **more: object,
    ) -> GeneratedCredentials:
        info = {
            "type": "external_account",
            "universe_domain": "googleapis.com",
            "audience": provider.audience,
            "subject_token_type": token_type,
            "token_url": self._token_url,
            "credential_source": source,
        }
        return self._write(kind, info | more, self._google.federation.principal(provider.audience, subject))

    def _impersonating(self) -> dict[str, str]:
        return {"service_account_impersonation_url": f"{IAM}/{self._account}:generateAccessToken"}

    def _pod_token(self) -> Path:
        file = self._folder / "subject-token"
        token = self._google.federation.cluster.token(POD, lifetime_seconds=POD_SECONDS)
        write_secret(file, token.encode())
        return file

    def _write(self, kind: CredentialKind, info: Mapping[str, object], principal: str) -> GeneratedCredentials:
        file = self._folder / f"{kind}.json"
        write_secret(file, json.dumps(info, indent=2).encode())
        return GeneratedCredentials(file=file, principal=principal)

    _WRITERS: Final[Mapping[CredentialKind, Callable[[CredentialFiles, CredentialKind], GeneratedCredentials]]] = {
        "service-account-key": _service_account_key,
        "authorized-user": _authorized_user,
        "external-account-file": _file,
        "external-account-url": _url,
        "external-account-executable": _executable,
        "external-account-aws-metadata": _aws_metadata,
        "external-account-aws-keys": _aws_keys,
        "external-account-impersonating": _federated_impersonating,
        "external-account-authorized-user": _workforce_user,
        "impersonated-service-account": _impersonated,
    }
    KINDS: Final[tuple[CredentialKind, ...]] = tuple(_WRITERS)
    """All kinds; `write` takes one."""
