"""Every credential source against the emulated Google, without a sidecar around it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from proxy.emulator import Certificates, CredentialFiles, Fault, GeneratedCredentials, Google, GoogleServer
from proxy.errors import AmbientUnsupported, CredentialsRejected, ImpersonationDenied, MintRefused
from proxy.tokens.google import GoogleMint
from proxy.tokens.model import TokenKey
from tests.support.emulated import AUDIENCE, TARGET, Names

ACCOUNT = "ambient@emulated.iam.gserviceaccount.com"
MIDDLE = "middle@emulated.iam.gserviceaccount.com"
AMBIENT = TokenKey(None, (), AUDIENCE)
IMPERSONATED = TokenKey(TARGET, (), AUDIENCE)
DELEGATED = TokenKey(TARGET, (MIDDLE,), AUDIENCE)

SELVES = ("service-account-key", "impersonated-service-account")
"""The kinds that can mint for themselves."""


@dataclass
class Place:
    """An emulated Google, and a mint whose environment can name a credential file."""

    google: Google
    server: GoogleServer
    mint: GoogleMint
    files: CredentialFiles
    environment: dict[str, str]
    setenv: Callable[[str, str], None]

    def take(self, kind: str) -> GeneratedCredentials:
        """Make a file of this kind the ambient credential."""
        written = self.files.write(kind)
        self.environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(written.file)
        for name, value in written.environment.items():
            self.setenv(name, value)  # google-auth reads the process' own
        return written


@pytest_asyncio.fixture
async def place(certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca_file))
    google = Google()
    google.add_account(TARGET)
    async with GoogleServer(google, certificates) as server:
        environment = {"HOME": str(tmp_path), "GCE_METADATA_HOST": server.metadata_address}
        mint = GoogleMint(environment=environment, resolver=Names(server.tls_address))
        files = CredentialFiles(tmp_path / "credentials", google, server, account=ACCOUNT)
        yield Place(google, server, mint, files, environment, monkeypatch.setenv)
        await mint.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", CredentialFiles.KINDS)
async def test_every_source_impersonates(place: Place, kind: str) -> None:
    written = place.take(kind)
    place.google.allow_impersonation(written.principal, TARGET)
    assert (await place.mint(IMPERSONATED)).principal == TARGET


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", CredentialFiles.KINDS)
async def test_every_source_impersonates_through_delegates(place: Place, kind: str) -> None:
    written = place.take(kind)
    place.google.allow_impersonation(written.principal, MIDDLE)
    place.google.allow_impersonation(MIDDLE, TARGET)
    assert (await place.mint(DELEGATED)).principal == TARGET


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", CredentialFiles.KINDS)
async def test_only_a_service_account_mints_for_itself(place: Place, kind: str) -> None:
    written = place.take(kind)
    if kind in SELVES:
        assert (await place.mint(AMBIENT)).principal == written.principal
        return
    with pytest.raises(AmbientUnsupported) as caught:
        await place.mint(AMBIENT)
    assert AUDIENCE in str(caught.value)
    assert place.google.calls == {}


@pytest.mark.asyncio
async def test_a_wrong_clock_is_recognised(place: Place) -> None:
    place.take("service-account-key")
    place.google.clock = lambda: time.time() + 7200
    with pytest.raises(
        CredentialsRejected, match=r"the clock of this machine is 7\d\d\d s behind Google's; set the clock"
    ):
        await place.mint(AMBIENT)


@pytest.mark.asyncio
async def test_a_user_is_named_even_if_the_file_does_not_name_one(place: Place) -> None:
    place.take("authorized-user")
    with pytest.raises(ImpersonationDenied, match=rf"person@example\.com may not impersonate {TARGET}"):
        await place.mint(IMPERSONATED)


@pytest.mark.asyncio
async def test_a_changed_subject_token_takes_effect(place: Place) -> None:
    written = place.take("external-account-file")
    place.google.allow_impersonation(written.principal, TARGET)
    subject = written.file.with_name("subject-token")
    right = subject.read_text()
    subject.write_text(place.google.federation.cluster.token("pod", lifetime_seconds=-600))
    with pytest.raises(CredentialsRejected, match="invalid_grant: The ID Token is invalid: it has expired"):
        await place.mint(IMPERSONATED)
    subject.write_text(right)
    assert (await place.mint(IMPERSONATED)).principal == TARGET


@pytest.mark.asyncio
async def test_a_source_that_google_revoked_is_reloaded(place: Place) -> None:
    written = place.take("external-account-impersonating")
    place.google.allow_impersonation(written.principal, TARGET)
    await place.mint(IMPERSONATED)
    place.google.revoke_access_tokens()
    assert (await place.mint(IMPERSONATED)).principal == TARGET


@pytest.mark.asyncio
async def test_an_identity_that_is_unknown_to_its_cloud_is_not_blamed_on_google(place: Place) -> None:
    place.take("external-account-aws-metadata")
    place.google.fail("aws", Fault.REJECTED)
    with pytest.raises(MintRefused, match=r"credential_source of .*external-account-aws-metadata\.json\) answered 401"):
        await place.mint(IMPERSONATED)
    place.take("external-account-url")
    place.google.fail("azure", Fault.REJECTED)
    with pytest.raises(MintRefused, match=r"external-account-url\.json\) answered 400 \(invalid_grant: "):
        await place.mint(IMPERSONATED)
    place.google.federation.remove_provider(place.google.federation.cluster.audience)
    place.take("external-account-file")
    with pytest.raises(MintRefused, match=r"providers/cluster that .* names does not exist, or it is disabled"):
        await place.mint(IMPERSONATED)
