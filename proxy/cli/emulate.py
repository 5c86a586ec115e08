"""`cloudrun-sidecar emulate`: a strict local Google, and a private Cloud Run service behind its front end."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import click

from proxy.cli.emulate_options import (
    PORT,
    PORT_OPTIONS,
    WholeNumber,
    accounts_among,
    check_descriptors,
    check_host,
    check_names,
    check_ports,
    limit_option,
    read_grants,
    read_https,
    read_pod,
    temporary_directory,
)
from proxy.cli.failures import CommandFailed, Gathered, Unusable
from proxy.cli.output import output_problem
from proxy.cli.parsing import Command
from proxy.cli.redaction import redact
from proxy.emulator import (
    GCLOUD_CLIENT,
    CannotListen,
    Certificates,
    CloudRun,
    CloudRunServer,
    Control,
    CredentialFiles,
    GeneratedCredentials,
    Google,
    GoogleServer,
    Limits,
    Pod,
    Services,
    description,
    echo,
    guide,
    project,
    write_secret,
)
from proxy.quoting import quoted

__all__ = ["emulate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """The options of the command: what to emulate, and where."""

    google: Google
    services: CloudRun | Services
    accounts: tuple[str, ...]
    users: tuple[str, ...]
    limits: Limits
    host: str
    cloud_run_port: int
    metadata_port: int
    tls_port: int
    directory: Path
    credentials: bool
    as_json: bool

    @property
    def each(self) -> tuple[CloudRun, ...]:
        """All services."""
        return self.services.services if isinstance(self.services, Services) else (self.services,)


HTTPS: Final = 443
_EPILOG: Final = """\
\b
  cloudrun-sidecar emulate                        one service that describes each request
  cloudrun-sidecar emulate --app service:app      your ASGI application behind Cloud Run
  cloudrun-sidecar emulate --config project.toml  several services, accounts and grants
  curl -X POST http://ADDRESS/emulator/faults …   make Google or Cloud Run fail while it runs

In the repository, docs/emulator.md shows a file for --config, what can be changed while it runs, and what of Google's
behaviour was read and not proven.
"""


# fmt: off
@click.command(cls=Command, epilog=_EPILOG)
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="File (TOML) with services, accounts, users and grants, instead of the options for them.")  # noqa: E501 – one option, one line
@click.option("--app", "application", metavar="MODULE:ATTR", help="ASGI application behind Cloud Run. [default: an echo]")  # noqa: E501 – as above
@click.option("--url", callback=read_https, help="The service's URL and default audience. [default: its own address]")
@click.option("--audience", "audiences", multiple=True, help="Additional audience that is accepted; repeatable.")
@click.option("--invoker", "invokers", multiple=True, metavar="MEMBER", help="Who may call the service: an e-mail, or a member as in IAM, such as group:a@example.com or allUsers; repeatable. [default: the metadata server's account]")  # noqa: E501 – as above
@click.option("--may-impersonate", "grants", multiple=True, metavar="CALLER=TARGET[:ROLE]", callback=read_grants, help="Let an account, a person or a federated principal mint tokens of an account; ROLE is tokenCreator (default), openIdTokenCreator (ID tokens only) or workloadIdentityUser; repeatable.")  # noqa: E501 – as above
@click.option("--user", "users", multiple=True, metavar="EMAIL", help="Person who has signed in with gcloud: writes a file with credentials; repeatable.")  # noqa: E501 – as above
@click.option("--gke-pod", "pod", metavar="NAMESPACE/NAME[=ACCOUNT]", callback=read_pod, help="The metadata server is that of GKE, for this Kubernetes account; ACCOUNT is in its annotation, and needs workloadIdentityUser.")  # noqa: E501 – as above
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--unsafe-listen", is_flag=True, help="Allow an address that other machines can reach. They can get tokens.")  # noqa: E501 – as above
@click.option("--cloud-run-port", type=PORT, default=0, metavar="PORT", help="Port of the Cloud Run front end. [default: a free one]")  # noqa: E501 – as above
@click.option("--metadata-port", type=PORT, default=0, metavar="PORT", help="Port of the metadata server. [default: a free one]")  # noqa: E501 – as above
@click.option("--tls-port", type=PORT, default=0, metavar="PORT", help="Port of the API hosts. [default: a free one]")
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path), help="Directory for ca.pem and key files. [default: a temporary one]")  # noqa: E501 – as above
@click.option("--credentials", is_flag=True, help="Also write one credential file of each kind; their principals may impersonate the invokers.")  # noqa: E501 – as above
@click.option("--token-lifetime", type=WholeNumber(1, 43_200), default=3600, show_default=True, metavar="SECONDS", help="Lifetime of tokens.")  # noqa: E501 – as above
@limit_option("--concurrent-streams", "NUMBER", "Requests at a time on a connection.")
@limit_option("--field-section-octets", "OCTETS", "How large the fields of a request may be; 16384 and 65536 are both reported of Google.")  # noqa: E501 – as above
@limit_option("--stream-window-octets", "OCTETS", "Receive window of each stream.")
@limit_option("--connection-window-octets", "OCTETS", "Receive window of each connection.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of text.")
@click.pass_context
def emulate(
    context: click.Context,
    /,
    *,
    config: Path | None,
    host: str,
    unsafe_listen: bool,
    cloud_run_port: int,
    metadata_port: int,
    tls_port: int,
    directory: Path | None,
    credentials: bool,
    as_json: bool,
    **described: Any,
) -> None:
    """Emulate Google locally, as strictly as the real one, until interrupted.

    A metadata server, IAM Credentials, the OAuth and token-exchange endpoints, and private Cloud Run services. The
    program that you test runs unmodified: variables (which this command prints), and host names where it has no
    variable for them, lead it here instead of to Google. What Google refuses is refused here, with Google's own answer.

    Read about Google, and not proven: windows of 1 MiB, 16 KiB of fields (64 KiB is reported, too), padded DATA, PING
    frames of its own, four minutes until an idle connection ends; the texts of Cloud Run's 429 and 5xx, the status of a
    wrong method or scheme, how a disabled account is refused, and the page of IAP's 403. That a connection ends after
    an hour, by GOAWAY in two steps, was written by an engineer of Google.
    """
    check_descriptors()
    mistakes = Gathered()
    with mistakes:
        check_ports((cloud_run_port, metadata_port, tls_port))
    with mistakes:
        check_host(host, unsafe_listen)
    with mistakes:
        emulated = _from_file(context, config, described) if config else _from_options(**described)
    mistakes.raise_found()
    google, services, accounts, users, limits = emulated
    # Created last before signals are handled, so that it is removed however the command ends.
    with nullcontext(directory) if directory else temporary_directory() as folder:
        plan = _Plan(
            google=google,
            services=services,
            accounts=accounts,
            users=users,
            limits=limits,
            host=host,
            cloud_run_port=cloud_run_port,
            metadata_port=metadata_port,
            tls_port=tls_port,
            directory=Path(folder).absolute(),
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


_Emulated: TypeAlias = tuple[Google, CloudRun | Services, tuple[str, ...], tuple[str, ...], Limits]
"""The state, the services, the accounts that get keys, the users, and the limits of the front end."""


def _from_file(context: click.Context, config: Path, options: Collection[str]) -> _Emulated:
    """Return what a file describes in the place of these options."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in options
        and context.get_parameter_source(parameter.name) is not click.core.ParameterSource.DEFAULT
    ]
    mistakes = Gathered()
    with mistakes:
        if given:
            raise Unusable(f"{', '.join(given)} cannot be used with --config: the file says it")
    with mistakes:
        found = _read(config)
    mistakes.raise_found()
    apps = {service.name: echo if service.app is None else _load(service.app) for service in found.services}
    google, services = project.build(found, apps)
    callers = accounts_among(grant.caller for grant in found.grants)
    return google, services, tuple(dict.fromkeys((*found.accounts, *callers))), found.users, found.front_end


def _read(config: Path) -> description.Description:
    """Return what is in a file; raises Unusable."""
    try:
        return description.read(config.read_text("utf-8-sig"))
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise Unusable(f"cannot read {quoted(str(config))}: {reason}") from exc
    except description.InvalidDescription as exc:
        raise Unusable.listing(f"the file {quoted(str(config))}", exc.problems) from exc


def _from_options(
    *,
    application: str | None,
    url: str | None,
    audiences: tuple[str, ...],
    invokers: tuple[str, ...],
    grants: tuple[description.GrantDescription, ...],
    users: tuple[str, ...],
    pod: Pod | None,
    token_lifetime: int,
    **limits: int,
) -> _Emulated:
    """Return what the options describe."""
    mistakes, app = Gathered(), echo
    google = Google(token_lifetime_seconds=token_lifetime)
    google.pod = pod
    members = invokers or (google.metadata_account,)
    accounts = accounts_among(members)
    callers = accounts_among(grant.caller for grant in grants)
    with mistakes:
        app = echo if application is None else _load(application)
    with mistakes:
        check_names(members, (*accounts, *callers, *users, *(grant.target for grant in grants)))
    mistakes.raise_found()
    for account in (*accounts, *callers, *users):
        google.add_account(account)
    for caller, target, role in grants:
        google.allow_impersonation(caller, target, role)
    cloud_run = CloudRun(app, google, url=url, custom_audiences=audiences, invokers=members)
    keys = tuple(dict.fromkeys((*(accounts if invokers else ()), *callers)))
    return google, cloud_run, keys, users, Limits(**limits)  # type: ignore[arg-type]  # only those of `limit_option`


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
    certificates = Certificates.create(plan.directory)
    google, services = plan.google, plan.services
    async with AsyncExitStack() as stack:
        endpoints = await stack.enter_async_context(
            GoogleServer(
                google,
                certificates,
                host=plan.host,
                metadata_port=plan.metadata_port,
                tls_port=plan.tls_port,
                control=Control(google, services),
            )
        )
        server = await stack.enter_async_context(
            CloudRunServer(services, certificates, host=plan.host, port=plan.cloud_run_port, limits=plan.limits)
        )
        if isinstance(services, Services):
            project.set_port(services, int(server.url.rpartition(":")[2]))
        running = guide.Running(
            endpoints=endpoints,
            server=server,
            services=plan.each,
            certificates=certificates,
            directory=plan.directory,
            keys=_write_keys(plan, endpoints),
            users=_write_users(plan),
            credentials=_write_credentials(plan, endpoints) if plan.credentials else {},
        )
        click.echo(json.dumps(guide.as_json(running)) if plan.as_json else guide.as_text(running))
        if output_problem() is None:  # else nobody knows where it is
            await stop.wait()


def _write_keys(plan: _Plan, endpoints: GoogleServer) -> dict[str, Path]:
    """Write a key file for the metadata account and each of the plan's accounts; return the files by account."""
    google, directory = plan.google, plan.directory / "keys"
    directory.mkdir(exist_ok=True)
    files: dict[str, Path] = {}
    for account in dict.fromkeys((google.metadata_account, *plan.accounts)):
        # On 443, DNS is expected to lead here; on any other port only the file itself can.
        key = google.key_file(account) if plan.tls_port == HTTPS else google.key_file(account, endpoints.token_uri)
        files[account] = directory / f"{account}.json"
        write_secret(files[account], json.dumps(key, indent=2).encode())
    return files


def _write_users(plan: _Plan) -> dict[str, Path]:
    """Write what gcloud stores of each user; return the files by e-mail."""
    directory = plan.directory / "users"
    if plan.users:
        directory.mkdir(exist_ok=True)
    files = {email: directory / f"{email}.json" for email in plan.users}
    for email, file in files.items():
        write_secret(file, json.dumps(plan.google.user_file(email, GCLOUD_CLIENT), indent=2).encode())
    return files


def _write_credentials(plan: _Plan, endpoints: GoogleServer) -> Mapping[str, GeneratedCredentials]:
    """Write a credential file of each kind, and allow each to impersonate the invokers; return the files by kind."""
    google = plan.google
    invokers = (invoker for service in plan.each for invoker in sorted(accounts_among(service.invokers)))
    targets = tuple(dict.fromkeys((*invokers, *plan.accounts))) or (google.metadata_account,)
    files = CredentialFiles(
        plan.directory / "credentials", google, endpoints, account=targets[0], by_name=plan.tls_port == HTTPS
    )
    written = {kind: files.write(kind) for kind in files.KINDS}
    for caller in {file.principal for file in written.values()}:
        for target in targets:
            google.allow_impersonation(caller, target)
    return written


def _with_remedy(error: CannotListen, plan: _Plan) -> str:
    ports = dict(zip((plan.cloud_run_port, plan.metadata_port, plan.tls_port), PORT_OPTIONS, strict=True))
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
    except (Exception, SystemExit) as exc:
        traceback.print_exc()
        raise Unusable(f"--app: the module {quoted(module)} fails when it is imported, as shown above") from exc
    if not hasattr(found, attribute):
        raise Unusable(f"--app: the module {quoted(module)} has no {quoted(attribute)}")
    if not callable(application := getattr(found, attribute)):
        raise Unusable(f"--app: {quoted(attribute)} of the module {quoted(module)} cannot be called")
    if not _takes_three(application):
        raise Unusable(
            f"--app: {quoted(attribute)} of the module {quoted(module)} is no ASGI application, which takes scope, "
            "receive and send; one of WSGI needs an adapter, such as a2wsgi"
        )
    return application


def _takes_three(application: Callable[..., Any]) -> bool:
    """Return whether it can be called with three arguments; True if that is not known."""
    try:
        inspect.signature(application).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # It is not written in Python.
        pass
    return True
