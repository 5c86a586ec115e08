"""`cloudrun-sidecar emulate`: a strict local Google, and a private Cloud Run service behind its front end."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from proxy.cli.failures import CommandFailed, Unusable
from proxy.cli.redaction import redact
from proxy.emulator import (
    API_HOSTS,
    CannotListen,
    Certificates,
    CloudRun,
    CloudRunServer,
    Control,
    CredentialFiles,
    GeneratedCredentials,
    Google,
    GoogleServer,
    echo,
    write_secret,
)
from proxy.quoting import plain, quoted
from proxy.routes.locality import is_loopback

__all__ = ["emulate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """The options of the command: what to emulate, and where."""

    app: Any
    url: str | None
    audiences: tuple[str, ...]
    invokers: tuple[str, ...]
    host: str
    cloud_run_port: int
    metadata_port: int
    tls_port: int
    directory: Path
    grants: tuple[tuple[str, str], ...]
    token_lifetime_seconds: int
    credentials: bool
    as_json: bool


def _pairs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for value in values:
        caller, equals, target = value.partition("=")
        if not (caller and equals and target):
            raise click.BadParameter(f"{quoted(value)} is not CALLER=TARGET (two e-mail addresses).")
        pairs.append((caller, target))
    return tuple(pairs)


def _https(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and (
        plain(value) is None or urlsplit(value).scheme != "https" or not urlsplit(value).hostname
    ):
        raise click.BadParameter(f"{quoted(value)} is not an https:// URL.")
    return value


HTTPS = 443
PORT = click.IntRange(0, 65535)


@click.command()
@click.option(
    "--app", "application", metavar="MODULE:ATTR", help="ASGI application behind Cloud Run. [default: an echo]"
)
@click.option("--url", callback=_https, help="The service's URL and default audience. [default: its own address]")
@click.option("--audience", "audiences", multiple=True, help="Additional audience that is accepted; repeatable.")
@click.option("--invoker", "invokers", multiple=True, metavar="EMAIL", help="Account that may call the service; repeatable. [default: the metadata server's]")  # fmt: skip  # noqa: E501 – one option, one line
@click.option("--may-impersonate", "grants", multiple=True, metavar="CALLER=TARGET", callback=_pairs, help="Let an account, a person or a federated principal mint tokens of an account; repeatable.")  # fmt: skip  # noqa: E501 – as above
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--unsafe-listen", is_flag=True, help="Allow an address that other machines can reach. They can get tokens.")  # fmt: skip  # noqa: E501 – as above
@click.option("--cloud-run-port", type=PORT, default=0, help="Port of the Cloud Run front end. [default: a free one]")
@click.option("--metadata-port", type=PORT, default=0, help="Port of the metadata server. [default: a free one]")
@click.option("--tls-port", type=PORT, default=0, help="Port of the API hosts. [default: a free one]")
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path), help="Directory for ca.pem and key files. [default: a temporary one]")  # fmt: skip  # noqa: E501 – as above
@click.option("--credentials", is_flag=True, help="Also write one credential file of each kind; their principals may impersonate the invokers.")  # fmt: skip  # noqa: E501 – as above
@click.option("--token-lifetime", type=click.IntRange(1, 43_200), default=3600, show_default=True, metavar="SECONDS", help="Lifetime of tokens.")  # fmt: skip  # noqa: E501 – as above
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of text.")
def emulate(
    application: str | None,
    url: str | None,
    audiences: tuple[str, ...],
    invokers: tuple[str, ...],
    grants: tuple[tuple[str, str], ...],
    host: str,
    unsafe_listen: bool,
    cloud_run_port: int,
    metadata_port: int,
    tls_port: int,
    directory: Path | None,
    credentials: bool,
    token_lifetime: int,
    as_json: bool,
) -> None:
    """Emulate Google locally, as strictly as the real one, until interrupted.

    A metadata server, IAM Credentials, the OAuth and token-exchange endpoints, and a private Cloud Run service.
    """
    if not unsafe_listen and not is_loopback(host.strip("[]")):
        raise Unusable(f"{quoted(host)} is reachable from other machines; add --unsafe-listen if that is meant")
    app = echo if application is None else _load(application)
    # Created last before signals are handled, so that it is removed however the command ends.
    with nullcontext(directory) if directory else tempfile.TemporaryDirectory(prefix="cloudrun-sidecar-") as folder:
        plan = _Plan(
            app=app,
            url=url,
            audiences=audiences,
            invokers=invokers,
            host=host,
            cloud_run_port=cloud_run_port,
            metadata_port=metadata_port,
            tls_port=tls_port,
            directory=Path(folder).absolute(),
            grants=grants,
            token_lifetime_seconds=token_lifetime,
            credentials=credentials,
            as_json=as_json,
        )
        try:
            with asyncio.Runner(loop_factory=_Loop) as runner:
                runner.run(_run(plan))
        except CannotListen as exc:
            raise CommandFailed(_with_remedy(exc, plan)) from exc
        except OSError as exc:
            place = redact(str(exc.filename or plan.directory), (str(plan.directory),))
            raise Unusable(f"cannot write to {place}: {exc.strerror}") from exc


class _Loop(asyncio.SelectorEventLoop):
    """An event loop on which the application cannot replace the signal handlers of this command.

    Restate's SDK handles SIGTERM itself from its first request on; this command would not end.
    """

    signals_taken = False
    """True once this command has set its handlers."""

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: object) -> None:
        """Refuse once the command has its own: RuntimeError, as on a loop that cannot handle signals."""
        if self.signals_taken:
            raise RuntimeError("signals are handled by the command that hosts this application")
        super().add_signal_handler(sig, callback, *args)


async def _run(plan: _Plan) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, stop.set)
    if isinstance(loop, _Loop):
        loop.signals_taken = True
    google = Google(token_lifetime_seconds=plan.token_lifetime_seconds)
    certificates = Certificates.create(plan.directory)
    invokers = plan.invokers or (google.metadata_account,)
    try:
        for account in invokers:
            google.add_account(account)
        for caller, target in plan.grants:
            if _is_account(caller):
                google.add_account(caller)
            google.allow_impersonation(caller, target)
    except ValueError as exc:
        raise Unusable(f"{redact(str(exc), (*invokers, *chain.from_iterable(plan.grants)))}") from exc
    cloud_run = CloudRun(plan.app, google, url=plan.url, custom_audiences=plan.audiences, invokers=invokers)
    names = (str(urlsplit(plan.url).hostname),) if plan.url else ()
    async with AsyncExitStack() as stack:
        endpoints = await stack.enter_async_context(
            GoogleServer(
                google,
                certificates,
                host=plan.host,
                metadata_port=plan.metadata_port,
                tls_port=plan.tls_port,
                control=Control(google, cloud_run),
            )
        )
        service = await stack.enter_async_context(
            CloudRunServer(cloud_run, certificates, host=plan.host, port=plan.cloud_run_port, names=names)
        )
        keys = _write_keys(plan, google, endpoints)
        written = _write_credentials(plan, google, endpoints, invokers) if plan.credentials else {}
        _announce(plan, google, cloud_run, endpoints, service, certificates, keys, written)
        await stop.wait()


def _write_keys(plan: _Plan, google: Google, endpoints: GoogleServer) -> dict[str, Path]:
    """Write a key file for the metadata account, each invoker and each caller; return the files by account."""
    directory = plan.directory / "keys"
    directory.mkdir(exist_ok=True)
    files: dict[str, Path] = {}
    callers = [caller for caller, _ in plan.grants if _is_account(caller)]
    for account in dict.fromkeys((google.metadata_account, *plan.invokers, *callers)):
        # On 443, DNS is expected to lead here; on any other port only the file itself can.
        key = google.key_file(account) if plan.tls_port == HTTPS else google.key_file(account, endpoints.token_uri)
        files[account] = directory / f"{account}.json"
        write_secret(files[account], json.dumps(key, indent=2).encode())
    return files


def _write_credentials(
    plan: _Plan, google: Google, endpoints: GoogleServer, invokers: tuple[str, ...]
) -> dict[str, GeneratedCredentials]:
    """Write a credential file of each kind, and allow each to impersonate the invokers; return the files by kind."""
    files = CredentialFiles(
        plan.directory / "credentials", google, endpoints, account=invokers[0], by_name=plan.tls_port == HTTPS
    )
    written = {kind: files.write(kind) for kind in files.KINDS}
    for caller in {file.principal for file in written.values()}:
        for target in invokers:
            google.allow_impersonation(caller, target)
    return written


def _announce(
    plan: _Plan,
    google: Google,
    cloud_run: CloudRun,
    endpoints: GoogleServer,
    service: CloudRunServer,
    certificates: Certificates,
    keys: dict[str, Path],
    written: dict[str, GeneratedCredentials],
) -> None:
    control = f"http://{endpoints.metadata_address}/emulator"
    environment = {
        "GCE_METADATA_HOST": endpoints.metadata_address,
        # google-auth's default() detects a metadata server by this variable.
        "GCE_METADATA_IP": endpoints.metadata_address,
        "SSL_CERT_FILE": str(certificates.ca_file),
    }
    if plan.as_json:
        places = {
            "cloud_run": service.url,
            "audience": cloud_run.url,
            "metadata": endpoints.metadata_address,
            "tls": endpoints.tls_address,
            "control": control,
            "directory": str(plan.directory),
            "ca_file": str(certificates.ca_file),
            "key_files": {account: str(file) for account, file in keys.items()},
            "environment": environment,
            "credentials": {
                kind: {"file": str(file.file), "principal": file.principal, "environment": dict(file.environment)}
                for kind, file in written.items()
            },
        }
        click.echo(json.dumps(places))
        return
    audiences = ", ".join((str(cloud_run.url), *cloud_run.custom_audiences))
    lines = [
        "The emulated Google is ready; Ctrl-C ends it.",
        "",
        f"  Cloud Run        {service.url}",
        f"                   audience {audiences}",
        f"                   invokers {', '.join(sorted(cloud_run.invokers))}",
        f"  metadata server  http://{endpoints.metadata_address}  as {google.metadata_account}",
        f"  API hosts        https://{endpoints.tls_address}  for {', '.join(API_HOSTS)}",
        f"  control          GET {control}/state, POST {control}/faults",
        f"  key files        {plan.directory / 'keys'}",
        "",
        "In the shell of the program that is to meet it:",
        "",
        *(f"  export {name}={value}" for name, value in environment.items()),
        "",
        "Or with a key instead of the metadata server:",
        "",
        f"  export GOOGLE_APPLICATION_CREDENTIALS={keys[google.metadata_account]}",
        *_credential_lines(written, endpoints),
    ]
    click.echo("\n".join(lines))


def _credential_lines(written: dict[str, GeneratedCredentials], endpoints: GoogleServer) -> list[str]:
    if not written:
        return []
    lines = ["", f"Or with another kind of credential, from {next(iter(written.values())).file.parent}:", ""]
    for file in written.values():
        needs = "".join(f"{name}={shlex.quote(value)} " for name, value in file.environment.items())
        lines += [f"  {needs}GOOGLE_APPLICATION_CREDENTIALS={shlex.quote(str(file.file))}", f"    is {file.principal}"]
    address, _, port = endpoints.tls_address.rpartition(":")
    lines += [
        "",
        "Users' credentials and impersonation call Google by name, whatever a file says. These names have to lead to",
        f"{address}, port {HTTPS}{'' if port == str(HTTPS) else ' (so add --tls-port 443)'}: {', '.join(API_HOSTS)}",
    ]
    return lines


def _is_account(caller: str) -> bool:
    """True if a caller is an account with an e-mail, which may have a key; federated principals may not."""
    return not caller.startswith(("principal://", "principalSet://"))


def _with_remedy(error: CannotListen, plan: _Plan) -> str:
    ports = {
        plan.cloud_run_port: "--cloud-run-port",
        plan.metadata_port: "--metadata-port",
        plan.tls_port: "--tls-port",
    }
    option = ports[error.port] if error.port else "--host"
    said = redact(str(error), (plan.host,)).rstrip(".")
    return f"{said[:1].lower()}{said[1:]}; choose another with {option}"


def _load(name: str) -> Any:
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise Unusable(f"--app must be MODULE:ATTR, as in service:app, not {quoted(name)}")
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as exc:
        raise Unusable(f"--app: there is no module {quoted(exc.name)} here or among the installed ones") from exc
    if not hasattr(found, attribute):
        raise Unusable(f"--app: the module {quoted(module)} has no {quoted(attribute)}")
    return getattr(found, attribute)
