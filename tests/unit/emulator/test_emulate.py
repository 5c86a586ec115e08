"""The command `emulate` in its own process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from click.testing import CliRunner
from google.auth import crypt, jwt
from h2.settings import Settings

from proxy.cli.commands import commands
from proxy.emulator import CredentialFiles
from proxy.emulator.model import unique_id
from tests.support.emulated import claims_of, trusting
from tests.support.peers.sockets import client

COMMAND = [sys.executable, "-m", "proxy", "emulate"]
METADATA = "metadata@emulated.iam.gserviceaccount.com"


async def _start(*arguments: str, directory: Path | None = None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=directory,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )


@asynccontextmanager
async def _running(*arguments: str, directory: Path | None = None) -> AsyncIterator[dict[str, Any]]:
    process = await _start("--json", *arguments, directory=directory)
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
        assert line, (await process.communicate())[1].decode()
        yield json.loads(line)
        process.terminate()
        _, errors = await asyncio.wait_for(process.communicate(), 60)
        assert (process.returncode, errors) == (0, b"")
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


class Shared(NamedTuple):
    """One process with most options, for the tests that need no other: a start takes a second of processor time."""

    places: dict[str, Any]
    directory: Path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    directory = tmp_path_factory.mktemp("emulated")
    arguments = [
        *("--json", "--credentials", "--directory", str(directory), "--host", "0.0.0.0", "--unsafe-listen"),
        *("--invoker", "app@a.example", "--invoker", METADATA, "--invoker", "serviceAccount:other@a.example"),
        *("--may-impersonate", "caller@a.example=target@a.example"),
        *("--may-impersonate", "principal://iam.googleapis.com/p/subject/s=target@a.example"),
    ]
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    ) as process:
        assert process.stdout is not None
        yield Shared(json.loads(process.stdout.readline()), directory)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")


def _read_private(file: Path) -> dict[str, Any]:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    content: dict[str, Any] = json.loads(file.read_text())
    return content


async def _token(client: aiohttp.ClientSession, places: dict[str, Any]) -> str:
    path = "/computeMetadata/v1/instance/service-accounts/default/identity"
    url = f"http://{places['environment']['GCE_METADATA_HOST']}{path}"
    async with client.get(
        url, params={"audience": places["audience"]}, headers={"Metadata-Flavor": "Google"}
    ) as response:
        assert response.status == 200
        return await response.text()


async def _advertised(places: dict[str, Any], name: str) -> Settings:
    """Return the settings that the front end sends to a client of this service."""
    address, _, port = places["cloud_run"].removeprefix("https://").rpartition(":")
    tls = trusting(Path(places["ca_file"]), "h2")
    tls.check_hostname = False  # the client names the address, and sends no name
    tls.verify_mode = ssl.CERT_NONE
    async with client(address, int(port), tls=tls, scheme="https", authority=name) as peer:
        await peer.ping()
        return peer.h2.remote_settings


@pytest.mark.asyncio
async def test_a_token_of_the_metadata_server_is_accepted_by_cloud_run(shared: Shared) -> None:
    places = shared.places
    async with aiohttp.ClientSession() as session:
        ca_file = Path(places["environment"]["SSL_CERT_FILE"])
        assert ca_file == shared.directory / "ca.pem"
        # Two names: google-auth gets tokens from the first, and probes the second for a metadata server.
        assert (
            places["environment"]["GCE_METADATA_HOST"] == places["environment"]["GCE_METADATA_IP"] == places["metadata"]
        )
        token = await _token(session, places)
        authority = places["cloud_run"].removeprefix("https://")
        host, _, port = authority.rpartition(":")
        async with client(host, int(port), tls=trusting(ca_file, "h2"), scheme="https", authority=authority) as peer:
            refused = await peer.response(peer.open("/hello", method="GET", end=True))
            stream = peer.open("/hello", fields=[(b"x-serverless-authorization", f"Bearer {token}".encode())])
            await peer.send(stream, b"hi", end=True)
            answer = await peer.response(stream)
        async with session.get(f"{places['control']}/state") as response:
            state = await response.json()
    assert refused.status == 403
    seen = json.loads(answer.content)
    assert (answer.status, seen["octets"], seen["claims"]["aud"]) == (200, 2, places["cloud_run"])
    assert state["streams"] == {"no token": 1, "accepted": 1}
    assert state["mints"]["metadata"] == 1


@pytest.mark.asyncio
async def test_its_key_file_works_without_dns_and_is_private(shared: Shared) -> None:
    places = shared.places
    assert places["key_files"].keys() == {METADATA, "app@a.example", "other@a.example", "caller@a.example"}
    key = _read_private(Path(places["key_files"]["caller@a.example"]))
    signer = crypt.RSASigner.from_service_account_info(key)  # type: ignore[no-untyped-call]  # google-auth
    now = int(time.time())
    claims = {"iss": key["client_email"], "aud": "https://oauth2.googleapis.com/token", "iat": now}
    claims |= {"exp": now + 3600, "target_audience": "x"}
    assertion: bytes = jwt.encode(signer, claims)  # type: ignore[no-untyped-call]  # google-auth
    form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": assertion.decode()}
    tls = trusting(shared.directory / "ca.pem")
    async with (
        aiohttp.ClientSession() as session,
        session.post(key["token_uri"], data=form, ssl=tls) as response,
    ):
        assert (response.status, set(await response.json())) == (200, {"id_token"})


@pytest.mark.asyncio
async def test_credentials_of_each_kind_are_written_on_demand_and_are_private(shared: Shared) -> None:
    places = shared.places
    written = places["credentials"]
    assert tuple(written) == CredentialFiles.KINDS
    for kind, credential in written.items():
        content = _read_private(Path(credential["file"]))
        assert Path(credential["file"]).parent == shared.directory / "credentials"
        assert content["type"].replace("_", "-") in kind + "-key"
    assert written["impersonated-service-account"]["principal"] == "app@a.example"
    assert written["external-account-executable"]["environment"] == {"GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES": "1"}
    # One of them end to end: token exchange, then impersonation of each invoker that is an account.
    pod = _read_private(Path(written["external-account-file"]["file"]))
    subject_token = shared.directory / "credentials" / "subject-token"
    assert pod["credential_source"] == {"file": str(subject_token), "format": {"type": "text"}}
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "audience": pod["audience"],
        "subject_token_type": pod["subject_token_type"],
        "subject_token": subject_token.read_text(),
        "scope": "https://www.googleapis.com/auth/cloud-platform",
    }
    tls = trusting(shared.directory / "ca.pem")
    async with aiohttp.ClientSession() as session:
        async with session.post(pod["token_url"], data=form, ssl=tls) as response:
            token = (await response.json())["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        for invoker in ("app@a.example", "other@a.example"):
            url = f"https://{places['tls']}/v1/projects/-/serviceAccounts/{invoker}:generateIdToken"
            async with session.post(url, json={"audience": "x"}, headers=headers, ssl=tls) as response:
                assert (response.status, set(await response.json())) == (200, {"token"})


def test_a_federated_principal_can_be_granted_an_account_and_gets_no_key(shared: Shared) -> None:
    assert all("@" in account for account in shared.places["key_files"])


@pytest.mark.asyncio
async def test_application_and_url_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(
        "async def app(scope, receive, send):\n"
        "    if scope['type'] != 'http': raise NotImplementedError\n"
        "    await send({'type': 'http.response.start', 'status': 299, 'headers': []})\n"
        "    await send({'type': 'http.response.body'})\n"
    )
    arguments: tuple[str, ...] = (
        "--app",
        "service:app",
        "--url",
        "https://Greeter-abc.a.run.app:443/",  # which is no audience as it is
        "--audience",
        "custom",
    )
    arguments += ("--concurrent-streams", "9", "--field-section-octets", "65536", "--stream-window-octets", "70000")
    async with aiohttp.ClientSession() as session, _running(*arguments, directory=tmp_path) as places:
        assert places["audience"] == "https://greeter-abc.a.run.app"
        token = await _token(session, places)
        port = places["cloud_run"].rpartition(":")[2]
        tls = trusting(Path(places["ca_file"]))
        settings = await _advertised(places, "greeter-abc.a.run.app")
        assert (settings.max_concurrent_streams, settings.max_header_list_size) == (9, 65_536)
        assert settings.initial_window_size == 70_000
        for host, status in (("greeter-abc.a.run.app", 299), (f"127.0.0.1:{port}", 404)):
            async with session.get(
                f"https://127.0.0.1:{port}/",
                headers={"Authorization": f"Bearer {token}", "Host": host},
                ssl=tls,
                server_hostname="greeter-abc.a.run.app",
            ) as response:
                assert response.status == status
    # A temporary directory is removed with the process.
    assert not os.path.exists(places["directory"])  # noqa: ASYNC240 – nothing waits for it


@pytest.mark.asyncio
async def test_a_file_describes_several_services_and_users(tmp_path: Path) -> None:
    config = tmp_path / "project.toml"
    config.write_text(
        'users = ["person@example.com"]\n'
        "front_end = {concurrent_streams = 7, stream_window_octets = 70_000}\n"
        "[services.greeter]\n"
        'invokers = ["user:person@example.com"]\n'
        'tags = ["blue"]\n'
        "[services.other]\n"
    )
    async with _running("--config", str(config)) as places, aiohttp.ClientSession() as session:
        greeter = places["services"]["greeter"]
        assert set(places["services"]) == {"greeter", "other"}
        port = places["cloud_run"].rpartition(":")[2]
        assert greeter["url"].endswith(f".europe-west1.run.app:{port}")
        host = greeter["url"].removeprefix("https://").partition(":")[0]
        assert f"blue---{host}" in greeter["hosts"]
        assert places["hosts"][1].startswith("127.0.0.1 ")
        user = _read_private(Path(places["user_files"]["person@example.com"]))
        form = {name: user[name] for name in ("client_id", "client_secret", "refresh_token")}
        tls = trusting(Path(places["ca_file"]))
        async with session.post(
            f"https://{places['tls']}/token", data=form | {"grant_type": "refresh_token"}, ssl=tls
        ) as response:
            token = (await response.json())["id_token"]
        settings = await _advertised(places, host)
        assert (settings.max_concurrent_streams, settings.initial_window_size) == (7, 70_000)
        for name, status in ((host, 200), (f"blue---{host}", 200), (host.replace("greeter", "stranger"), 404)):
            async with session.get(
                places["cloud_run"],
                headers={"Authorization": f"Bearer {token}", "Host": name},
                ssl=tls,
                server_hostname=host,
            ) as response:
                assert response.status == status


@pytest.mark.asyncio
async def test_a_pod_and_the_narrow_role_are_set_by_options() -> None:
    account = "app@emulated.iam.gserviceaccount.com"
    member = "emulated.svc.id.goog[prod/restate]"
    arguments = ("--gke-pod", f"prod/restate={account}", "--invoker", account)
    async with (
        _running(*arguments, "--may-impersonate", f"{member}={account}:workloadIdentityUser") as places,
        aiohttp.ClientSession() as session,
    ):
        assert claims_of(await _token(session, places))["sub"] == unique_id(account)


@pytest.mark.asyncio
async def test_the_text_has_addresses_and_variables() -> None:
    process = await _start("--credentials", "--invoker", f"serviceAccount:{METADATA}")
    assert process.stdout is not None
    text = ""
    while "so add --tls-port 443" not in text:
        line = await process.stdout.readline()
        assert line
        text += line.decode()
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == 0
    for words in (
        "metadata server",
        "iamcredentials.googleapis.com",
        "export GCE_METADATA_HOST=",
        "export GCE_METADATA_IP=",
        "A first request:",
        "curl -s --cacert ",
        "export GOOGLE_APPLICATION_CREDENTIALS=",
        "credentials/external-account-file.json",
        "GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES=1 GOOGLE_APPLICATION_CREDENTIALS=",
        "AWS_ACCESS_KEY_ID=AKIA",
        "export SSL_CERT_FILE=",
        METADATA,
    ):
        assert words in text


@pytest.mark.parametrize("option", ["--cloud-run-port", "--metadata-port", "--tls-port"])
def test_a_busy_port_is_named_with_its_option(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        result = CliRunner().invoke(commands, ["emulate", option, str(port)])
    assert (result.exit_code, result.stdout) == (1, "")  # it may become free
    assert result.stderr == (
        f"cloudrun-sidecar: cannot listen on 127.0.0.1:{port}: the port is in use by another program; "
        f"choose another with {option}\n"
    )


@pytest.mark.parametrize("host", ["nonsense.invalid", "192.0.2.1", "nonsense..invalid"])
def test_a_host_that_is_not_this_machine_is_refused_as_that(host: str) -> None:
    for more in ((), ("--unsafe-listen",)):
        result = CliRunner().invoke(commands, ["emulate", "--host", host, *more])
        assert (result.exit_code, result.stdout) == (1, "")  # it may become one
        assert result.stderr.startswith(f"cloudrun-sidecar: --host '{host}' is no address of this machine: ")


def test_two_options_with_one_port_are_named() -> None:
    result = CliRunner().invoke(commands, ["emulate", "--cloud-run-port", "8443", "--tls-port", "8443"])
    assert (result.exit_code, result.stderr) == (
        2,
        "cloudrun-sidecar: --cloud-run-port and --tls-port have the same port, 8443; each needs its own\n",
    )


def test_the_examples_of_the_help_have_a_line_each() -> None:
    text = CliRunner().invoke(commands, ["emulate", "--help"], terminal_width=100).stdout
    assert "\\b" not in text
    lines = [line.strip() for line in text.splitlines()]
    assert "cloudrun-sidecar emulate --app service:app      your ASGI application behind Cloud Run" in lines


def test_a_file_with_problems_is_refused_with_all_of_them(tmp_path: Path) -> None:
    config = tmp_path / "project.toml"
    config.write_text('[services.A]\ninvokers = ["nobody"]\n', "utf-8-sig")
    result = CliRunner().invoke(commands, ["emulate", "--config", str(config)])
    assert result.exit_code == 2
    assert "2 problems with the file" in result.stderr
    assert "\n  services.A is not the name of a service" in result.stderr
    assert "\n  services.A.invokers[0] has to be a member" in result.stderr
    config.write_text("[services.a]\n")
    result = CliRunner().invoke(commands, ["emulate", "--config", str(config), "--user", "a@b.example", "--app", "x:y"])
    assert result.exit_code == 2
    assert "--app, --user cannot be used with --config" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "--unsafe-listen"),
        (["--app", "service"], "MODULE:ATTR"),
        (["--app", "no_such_module:app"], "no module 'no_such_module'"),
        (["--app", "json:app"], "has no 'app'"),
        (["--app", "json:__name__"], "cannot be called"),
        (["--url", "a.example"], "not an https:// URL"),
        (["--url", "https://a.example/path"], "without a path"),
        (["--url", "https://a..example"], "'a..example' is neither a host name nor an address"),
        (["--invoker", "nobody"], "not an e-mail address"),
        (["--may-impersonate", "a@b"], "CALLER=TARGET"),
        (["--may-impersonate", "a@b=c@d:owner"], "openIdTokenCreator"),
        (["--gke-pod", "restate"], "NAMESPACE/NAME"),
        (["--gke-pod", "restate/server=nobody"], "NAMESPACE/NAME"),
        (["--user", "person"], "not an e-mail address"),
        (["--directory", "/dev/null/x"], "/dev/null/x"),
        (["--host", "192.0.2.1", "--unsafe-listen"], "--host"),
    ],
)
def test_an_invalid_option_is_reported_in_a_sentence(arguments: Sequence[str], words: str) -> None:
    result = CliRunner().invoke(commands, ["emulate", *arguments])
    # An interface may get this address later.
    assert result.exit_code == (1 if "192.0.2.1" in arguments else 2)
    assert result.stdout == ""
    assert words in result.stderr


def test_a_wildcard_needs_unsafe_listen_and_is_reached_over_loopback(shared: Shared) -> None:
    assert shared.places["metadata"].startswith("127.0.0.1:")
    assert shared.places["cloud_run"].startswith("https://127.0.0.1:")
