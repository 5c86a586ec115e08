"""Identity-Aware Proxy in front of a service: what it refuses, and what the container gets of a caller that passes."""

from __future__ import annotations

import base64

import pytest
from google.auth import crypt

from proxy.emulator import CloudRun, Google, ServiceFault, Verdict, read_claims
from proxy.emulator.iap import account_of
from proxy.emulator.model import unique_id
from tests.support.emulated import AUDIENCE, CALLER, TARGET, Clock, claims_of
from tests.support.front_end import Application, bearer, call
from tests.unit.emulator.test_clients import sign, times

AUTHORIZATION, PROXY_AUTHORIZATION = b"authorization", b"proxy-authorization"
SERVERLESS_AUTHORIZATION = b"x-serverless-authorization"
CLIENT = "1-a.apps.googleusercontent.com"

pytestmark = pytest.mark.asyncio


@pytest.fixture
def cloud_run(application: Application, google: Google) -> CloudRun:
    return CloudRun(
        application,
        google,
        name="greeter",
        url=AUDIENCE,
        other_urls=[f"{AUDIENCE}:8443"],
        invokers=[account_of(google)],
        iap=True,
        iap_accessors=[CALLER],
        iap_clients=[CLIENT],
    )


def _signed(google: Google, clock: Clock, audience: str, account: str = CALLER, **changes: object) -> str:
    return sign(google.key_file(account), {"iss": account, "sub": account, "aud": audience, **times(clock), **changes})


async def _refused(cloud_run: CloudRun, *fields: tuple[bytes, bytes]) -> tuple[int, str]:
    start, body = await call(cloud_run, fields)
    assert (b"x-goog-iap-generated-response", b"true") in start["headers"]
    assert cloud_run.streams[-1].verdict is Verdict.IAP
    return start["status"], body["body"].decode()


async def test_a_caller_without_a_token_is_redirected_to_sign_in_and_a_script_in_a_page_is_not(
    cloud_run: CloudRun, google: Google
) -> None:
    # Cloud Run's field has no effect: IAP sets it itself.
    token = bearer(google.id_token(CALLER, AUDIENCE)[0])
    for fields in ([], [(SERVERLESS_AUTHORIZATION, token)], [(AUTHORIZATION, b"Basic eDp5")]):
        start, _ = await call(cloud_run, fields)
        assert (start["status"], dict(start["headers"])[b"location"][:28]) == (302, b"https://accounts.google.com/")
    assert await _refused(cloud_run) == (302, "Invalid IAP credentials: empty token")
    script = (b"x-requested-with", b"XMLHttpRequest")
    assert await _refused(cloud_run, script) == (401, "Invalid IAP credentials: empty token")


async def test_a_token_that_iap_does_not_accept_is_refused_with_the_reason(
    cloud_run: CloudRun, google: Google, clock: Clock
) -> None:
    nobody = google.id_token(CALLER, CLIENT, with_email=False)[0]
    wrong_key = sign(google.key_file(TARGET), {"iss": CALLER, "sub": CALLER, "aud": AUDIENCE, **times(clock)})
    for token, reason in (
        ("ya29.emulated", "Unable to parse JWT"),
        (google.id_token(CALLER, AUDIENCE)[0], "Invalid bearer token. Invalid JWT audience."),
        (google.id_token(CALLER, CLIENT)[0][:-4] + "AAAA", "JWT signature is invalid"),
        (wrong_key, "JWT signature is invalid"),
        (_signed(google, clock, "https://other.example/*"), "Invalid bearer token. Invalid JWT audience."),
        (_signed(google, clock, AUDIENCE, sub=TARGET), "JWT 'email' claim isn't a string"),
        (nobody, "JWT 'email' claim isn't a string"),
        (google.id_token(CALLER, CLIENT, expired=True)[0], "Invalid bearer token. it has expired."),
    ):
        refused = await _refused(cloud_run, (AUTHORIZATION, bearer(token)))
        assert refused == (401, f"Invalid IAP credentials: {reason}")


async def test_a_caller_without_access_and_a_disabled_one_are_forbidden(cloud_run: CloudRun, google: Google) -> None:
    stranger = bearer(google.id_token(TARGET, CLIENT)[0])
    assert (await _refused(cloud_run, (AUTHORIZATION, stranger)))[0] == 403
    caller = bearer(google.id_token(CALLER, CLIENT)[0])
    google.disabled.add(CALLER)
    assert (await _refused(cloud_run, (AUTHORIZATION, caller)))[0] == 403


async def test_a_caller_that_passes_is_named_to_the_container_with_a_signature(
    cloud_run: CloudRun, google: Google, application: Application, clock: Clock
) -> None:
    forged = [(b"x-goog-authenticated-user-email", b"admin"), (b"x-goog-iap-jwt-assertion", b"forged")]
    id_token = bearer(google.id_token(CALLER, CLIENT)[0])
    own = [bearer(_signed(google, clock, f"{AUDIENCE}{end}")) for end in ("", "/*", "/invoke", ":8443/*")]
    for token in (id_token, *own):
        await call(cloud_run, [(AUTHORIZATION, token), *forged])
        fields = dict(application.scopes[-1]["headers"])
        assert len(fields) == len(application.scopes[-1]["headers"])
        email, number = CALLER.encode(), unique_id(CALLER).encode()
        assert fields[b"x-goog-authenticated-user-email"] == b"accounts.google.com:" + email
        assert fields[b"x-goog-authenticated-user-id"] == b"accounts.google.com:" + number
        assertion = fields[b"x-goog-iap-jwt-assertion"]
        claims = claims_of(assertion.decode())
        project = google.project_number("emulated")
        assert claims["iss"] == "https://cloud.google.com/iap"
        assert claims["aud"] == f"/projects/{project}/locations/europe-west1/services/greeter"
        assert (claims["email"], claims["exp"] - claims["iat"]) == (CALLER, 600)
        signed, _, signature = assertion.rpartition(b".")
        verifier = crypt.ES256Verifier.from_string(google.iap_key.public_pem)
        assert verifier.verify(signed, base64.urlsafe_b64decode(signature + b"=="))
        own_token = read_claims(fields[SERVERLESS_AUTHORIZATION])
        assert (own_token["email"], own_token["aud"]) == (account_of(google), AUDIENCE)


async def test_a_token_in_proxy_authorization_leaves_authorization_to_the_application(
    cloud_run: CloudRun, google: Google, application: Application
) -> None:
    token = bearer(google.id_token(CALLER, CLIENT)[0])
    await call(cloud_run, [(PROXY_AUTHORIZATION, token), (AUTHORIZATION, b"Bearer of the application")])
    fields = dict(application.scopes[-1]["headers"])
    assert fields[AUTHORIZATION] == b"Bearer of the application"
    assert PROXY_AUTHORIZATION not in fields
    # One that is not valid is ignored.
    await call(cloud_run, [(PROXY_AUTHORIZATION, b"Bearer junk"), (AUTHORIZATION, token)])
    assert cloud_run.streams[-1].verdict is Verdict.ACCEPTED


async def test_the_account_of_iap_has_to_be_an_invoker(cloud_run: CloudRun, google: Google) -> None:
    cloud_run.invokers = {CALLER}
    start, _ = await call(cloud_run, [(AUTHORIZATION, bearer(google.id_token(CALLER, CLIENT)[0]))])
    assert start["status"] == 403
    assert b"x-goog-iap-generated-response" not in dict(start["headers"])


async def test_as_a_fault_nobody_passes(cloud_run: CloudRun, google: Google) -> None:
    token = bearer(google.id_token(CALLER, CLIENT)[0])
    cloud_run.fail(ServiceFault.IAP, times=2)
    assert (await _refused(cloud_run, (AUTHORIZATION, token)))[0] == 401
    assert (await _refused(cloud_run))[0] == 302
    assert (await call(cloud_run, [(AUTHORIZATION, token)]))[0]["status"] == 204
