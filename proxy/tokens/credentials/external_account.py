"""Workload identity federation (`external_account`): another provider's subject token, exchanged at the STS."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

from proxy.errors import CredentialsInvalid
from proxy.tokens.credentials.google_auth_file import GoogleAuthFile
from proxy.tokens.credentials.iam_credentials import CLOUD_PLATFORM
from proxy.tokens.credentials.subject_token import SubjectTokenSource
from proxy.tokens.credentials.subject_token_aws import AwsSource
from proxy.tokens.credentials.subject_token_executable import ExecutableSource
from proxy.tokens.credentials.subject_token_file import FileSource
from proxy.tokens.credentials.subject_token_url import UrlSource

__all__ = ["SUBJECT_TOKEN_SOURCES", "ExternalAccount"]

SUBJECT_TOKEN_SOURCES: Final[tuple[type[SubjectTokenSource], ...]] = (
    AwsSource,
    ExecutableSource,
    FileSource,
    UrlSource,
)
"""In the order in which they are looked for: a `credential_source` of AWS has a `url`, too."""


class ExternalAccount(GoogleAuthFile):
    """A federated identity, which may impersonate a service account."""

    kind = "external_account"
    label = "workload identity federation"
    required_fields = ("audience", "subject_token_type", "credential_source")
    object_fields = frozenset({"credential_source"})
    rejection_remedy = (
        "see that the identity provider's token has not expired, and that the provider of the pool, as `gcloud iam "
        "workload-identity-pools providers describe` shows it, accepts its issuer, audience and attributes"
    )

    @cached_property
    def subject_token_source(self) -> SubjectTokenSource:
        """Where the subject token comes from. Raises CredentialsInvalid if the file names no source."""
        for source in SUBJECT_TOKEN_SOURCES:
            if source.member in self.info["credential_source"]:
                return source(self.path, self.info, self.impersonated_account())
        known = ", ".join(source.member for source in SUBJECT_TOKEN_SOURCES)
        raise CredentialsInvalid(f"{self.path}: its credential_source has none of {known}; create the file again")

    def check(self) -> None:
        super().check()
        if "certificate" in self.info["credential_source"]:
            raise CredentialsInvalid(
                f"{self.path}: X.509 workload identity federation is not supported; use a file, url, executable or AWS "
                "source"
            )
        self.subject_token_source.check()

    def load(self, subject_token: str | None) -> Any:
        info, scopes = self.google_auth_info(), [CLOUD_PLATFORM]
        if str(info["subject_token_type"]).startswith("urn:ietf:params:aws"):
            from google.auth import aws

            return aws.Credentials.from_info(info, scopes=scopes)  # type: ignore[no-untyped-call]
        from google.auth import identity_pool

        if subject_token is None:
            return identity_pool.Credentials.from_info(info, scopes=scopes)  # type: ignore[no-untyped-call]

        class Supplier(identity_pool.SubjectTokenSupplier):
            def get_subject_token(self, context: object, request: object) -> str | None:
                return subject_token

        # As a member: before 2.55, google-auth takes no supplier as an argument here.
        given = {**info, "credential_source": None, "subject_token_supplier": Supplier()}
        return identity_pool.Credentials.from_info(given, scopes=scopes)  # type: ignore[no-untyped-call]

    def rejection(self, answer: str, clock: str) -> str:
        what = f"Google does not accept the subject token of the identity provider in {self.path}{answer}"
        return f"{what}: {clock}" if clock else what
