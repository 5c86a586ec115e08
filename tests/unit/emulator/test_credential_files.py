"""The content of credential files. tests/integration/test_credentials.py shows that each kind works."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from proxy.emulator import CredentialFiles, Google, GoogleServer
from tests.support.emulated import CALLER

TYPES = {
    "service-account-key": "service_account",
    "authorized-user": "authorized_user",
    "external-account-authorized-user": "external_account_authorized_user",
    "impersonated-service-account": "impersonated_service_account",
}


def written(folder: Path, google: Google, server: GoogleServer, kind: str, *, by_name: bool) -> dict[str, Any]:
    file = CredentialFiles(folder, google, server, account=CALLER, by_name=by_name).write(kind).file
    content: dict[str, Any] = json.loads(file.read_text())
    return content


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", CredentialFiles.KINDS)
async def test_a_file_has_its_type_and_is_private(
    tmp_path: Path, google: Google, server: GoogleServer, kind: str
) -> None:
    content = written(tmp_path / "new", google, server, kind, by_name=False)
    assert content["type"] == TYPES.get(kind, "external_account")
    for file in (tmp_path / "new").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0


@pytest.mark.asyncio
async def test_a_file_names_the_emulator_or_google(tmp_path: Path, google: Google, server: GoogleServer) -> None:
    for kind, member, path in (
        ("service-account-key", "token_uri", "oauth2.googleapis.com/token"),
        ("external-account-file", "token_url", "sts.googleapis.com/v1/token"),
        ("external-account-authorized-user", "token_url", "sts.googleapis.com/v1/oauthtoken"),
    ):
        assert written(tmp_path, google, server, kind, by_name=True)[member] == f"https://{path}"
        address = written(tmp_path, google, server, kind, by_name=False)[member]
        assert address == f"https://{server.tls_address}/{path.partition('/')[2]}"


@pytest.mark.asyncio
async def test_an_unknown_kind_is_an_error(tmp_path: Path, google: Google, server: GoogleServer) -> None:
    with pytest.raises(KeyError):
        written(tmp_path, google, server, "gdch", by_name=False)
