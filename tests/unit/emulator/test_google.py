from __future__ import annotations

import pytest

from proxy.emulator import Fault, Google, Permission, Role
from proxy.emulator.google import NoSuchAccount
from proxy.emulator.jwts import parse
from proxy.emulator.model import unique_id
from tests.support.emulated import AUDIENCE, CALLER, TARGET, Clock


def test_an_id_token_has_googles_claims(google: Google, clock: Clock) -> None:
    token, expires = google.id_token(TARGET, AUDIENCE)
    claims = parse(token).verified(google.certificates())
    assert claims == {
        "iss": "https://accounts.google.com",
        "aud": AUDIENCE,
        "azp": unique_id(TARGET),
        "sub": unique_id(TARGET),
        "email": TARGET,
        "email_verified": True,
        "iat": clock.now,
        "exp": clock.now + 3600,
    }
    assert expires == claims["exp"]


def test_a_numeric_id_has_21_digits_and_is_stable() -> None:
    assert unique_id(TARGET) == unique_id(TARGET) != unique_id(CALLER)
    assert unique_id(TARGET).isdigit()
    assert len(unique_id(TARGET)) == 21


def test_the_email_is_optional(google: Google) -> None:
    token, _ = google.id_token(TARGET, AUDIENCE, with_email=False)
    assert parse(token).claims.keys() == {"iss", "aud", "azp", "sub", "iat", "exp"}


def test_an_expired_token_expired_an_hour_ago(google: Google, clock: Clock) -> None:
    _, expires = google.id_token(TARGET, AUDIENCE, expired=True)
    assert expires == clock.now - 3600


def test_the_lifetime_is_a_setting(clock: Clock) -> None:
    google = Google(clock=clock, token_lifetime_seconds=62)
    assert google.id_token(TARGET, AUDIENCE)[1] == clock.now + 62
    assert google.access_token(CALLER)[1] == clock.now + 62


def test_an_access_token_is_valid_until_it_expires(google: Google, clock: Clock) -> None:
    token, expires = google.access_token(CALLER)
    access = google.access(token)
    assert access is not None
    assert access.principal == CALLER
    clock.now = expires
    assert google.access(token) is None


def test_a_revoked_access_token_is_unknown(google: Google) -> None:
    token, _ = google.access_token(CALLER)
    google.revoke_access_tokens()
    assert google.access(token) is None


def test_accounts_are_found_by_email_and_by_number(google: Google) -> None:
    google.add_account(TARGET)
    assert google.account(TARGET) == google.account(unique_id(TARGET)) == TARGET
    with pytest.raises(NoSuchAccount):
        google.account(CALLER)
    with pytest.raises(NoSuchAccount):
        google.keys_of(CALLER)


@pytest.mark.parametrize("email", ["", "nobody", "@a.example", "a@", "a/b@c.example", "a b@c.example", "a:b@c.example"])
def test_an_invalid_email_is_refused(google: Google, email: str) -> None:
    with pytest.raises(ValueError, match="e-mail"):
        google.add_account(email)


def test_a_key_file_has_googles_form_and_only_its_public_half_is_stored(google: Google) -> None:
    file = google.key_file(CALLER)
    assert file["type"] == "service_account"
    assert file["client_email"] == CALLER
    assert file["token_uri"] == "https://oauth2.googleapis.com/token"
    assert file["project_id"] == "emulated"
    assert file["private_key"].startswith("-----BEGIN PRIVATE KEY-----")
    assert google.keys_of(CALLER).keys() == {file["private_key_id"]}
    assert "PUBLIC KEY" in google.keys_of(CALLER)[file["private_key_id"]]


def test_an_account_may_have_several_keys(google: Google) -> None:
    files = [google.key_file(CALLER), google.key_file(CALLER)]
    assert google.keys_of(CALLER).keys() == {file["private_key_id"] for file in files}


def test_the_smaller_role_gives_id_tokens_only(google: Google) -> None:
    google.allow_impersonation(CALLER, TARGET, Role.OPEN_ID_TOKEN_CREATOR)
    assert google.has_permission(CALLER, Permission.GET_OPEN_ID_TOKEN, TARGET)
    assert not google.has_permission(CALLER, Permission.GET_ACCESS_TOKEN, TARGET)
    assert not google.has_permission(CALLER, Permission.IMPLICIT_DELEGATION, TARGET)


def test_the_larger_role_gives_all_and_can_be_revoked(google: Google) -> None:
    google.allow_impersonation(CALLER, TARGET)
    assert all(google.has_permission(CALLER, permission, TARGET) for permission in Permission)
    assert not google.has_permission(TARGET, Permission.GET_OPEN_ID_TOKEN, CALLER)
    google.forbid_impersonation(CALLER, TARGET)
    assert not any(google.has_permission(CALLER, permission, TARGET) for permission in Permission)


def test_an_account_cannot_impersonate_itself_without_a_grant(google: Google) -> None:
    google.add_account(TARGET)
    assert not google.has_permission(TARGET, Permission.GET_OPEN_ID_TOKEN, TARGET)


def test_a_fault_lasts_for_the_given_number_of_requests(google: Google) -> None:
    google.fail("iam", Fault.JUNK, times=2)
    assert [google.pending_faults["iam"].take() for _ in range(3)] == [Fault.JUNK, Fault.JUNK, None]
    assert google.pending_faults["oauth"].take() is None


def test_a_fault_without_a_number_lasts_until_removed(google: Google) -> None:
    google.fail("iam", Fault.JUNK)
    assert [google.pending_faults["iam"].take() for _ in range(3)] == [Fault.JUNK] * 3
    google.fail("iam", None)
    assert google.pending_faults["iam"].take() is None


def test_issued_tokens_are_recorded(google: Google, clock: Clock) -> None:
    google.record_mint("iam", TARGET, AUDIENCE, 5.0)
    (mint,) = google.mints
    assert (mint.endpoint, mint.audience, mint.email, mint.time, mint.expires_at) == (
        "iam",
        AUDIENCE,
        TARGET,
        clock.now,
        5.0,
    )
