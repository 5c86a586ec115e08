"""Each kind of credential file: its class, its name, what it needs. A new kind is a new row."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

from proxy.errors import CredentialsInvalid
from proxy.tokens import credentials
from proxy.tokens.credentials.external_account import SUBJECT_TOKEN_SOURCES
from proxy.tokens.credentials.file import CredentialFile
from proxy.tokens.credentials.kinds import KINDS, credential
from proxy.tokens.credentials.subject_token import SubjectTokenSource

ROWS = [
    ("service_account", "key file", True, "client_email, private_key, token_uri"),
    ("authorized_user", "user credentials", False, "client_id, client_secret, refresh_token"),
    ("external_account", "workload identity federation", False, "audience, subject_token_type, credential_source"),
    (
        "external_account_authorized_user",
        "workforce identity federation",
        False,
        "client_id, client_secret, refresh_token, token_url, audience",
    ),
    (
        "impersonated_service_account",
        "impersonated service account",
        True,
        "service_account_impersonation_url, source_credentials",
    ),
]


@pytest.mark.parametrize(("kind", "label", "mints_id_tokens", "required"), ROWS)
def test_a_kind_names_its_label_and_its_required_fields(
    kind: str, label: str, mints_id_tokens: bool, required: str
) -> None:
    assert (KINDS[kind].label, KINDS[kind].mints_id_tokens) == (label, mints_id_tokens)
    with pytest.raises(CredentialsInvalid, match=rf"^key\.json \({kind}\) has no {required}; create the file again$"):
        credential("key.json", b"", {"type": kind})


def test_each_supported_kind_has_a_row() -> None:
    assert [kind for kind, of in KINDS.items() if of.supported] == [row[0] for row in ROWS]


@pytest.mark.parametrize("base", [CredentialFile, SubjectTokenSource])
def test_each_class_of_a_kind_has_its_own_file_and_is_in_the_table(
    base: type[CredentialFile] | type[SubjectTokenSource],
) -> None:
    modules = [
        importlib.import_module(f"{credentials.__name__}.{module.name}")
        for module in pkgutil.iter_modules(credentials.__path__)
        if module.name != "google_auth"  # its import is that of google-auth
    ]
    found = [
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, base) and kind.__module__ == module.__name__
    ]
    kinds = [kind for kind in found if not inspect.isabstract(kind) and kind is not base]
    assert len({kind.__module__ for kind in kinds}) == len(kinds)
    assert set(kinds) == set(KINDS.values() if base is CredentialFile else SUBJECT_TOKEN_SOURCES)


def test_no_content_is_in_the_repr() -> None:
    assert (
        repr(KINDS["authorized_user"]("user.json", b"", {"refresh_token": "secret"})) == "AuthorizedUser('user.json')"
    )
