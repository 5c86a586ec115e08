"""Runs `cloudrun-sidecar serve` once its settings are read."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NoReturn

import structlog

from proxy.compiled import changed_sources
from proxy.downstream.binding import ListenFailed, SocketFile, UnixAccess, bind_tcp, bind_unix
from proxy.downstream.channel import Channel
from proxy.downstream.config import ListenerConfig
from proxy.downstream.inherited import InheritedSockets
from proxy.downstream.tls import TlsFiles, TlsUnusable, server_context
from proxy.exit_codes import ExitCode, error_line, no_thread
from proxy.http2.choice import EngineUnavailable, engine_choice
from proxy.network.address import Address, parse_address_or_off
from proxy.network.descriptors import descriptors_refusal, raise_descriptor_limit
from proxy.network.service_manager import ServiceManager
from proxy.observe.background import background_output
from proxy.observe.lines import configure_logging
from proxy.observe.tracing import tracing_refusal
from proxy.settings.plain import PlainSettings
from proxy.settings.reading import CommandLine
from proxy.supervisor.importing import lean_imports

if TYPE_CHECKING:
    from proxy.downstream.takeover import Takeover

__all__ = ["serve"]

_log: Final = structlog.get_logger("sidecar")

_ORPHANS_SECONDS: Final = 2.0
"""How long workers whose supervisor was killed may take to leave the admin port."""
_PAUSE_SECONDS: Final = 0.05
"""Between two attempts to bind it."""


def serve(settings: PlainSettings, command_line: CommandLine) -> int:
    """Serve with these settings until a signal ends it; `command_line` is what they are read from again.

    Returns the `ExitCode`; if it is not 0, the reason is on standard error.
    """
    unix_access = UnixAccess.parse(settings.socket_mode, settings.socket_user, settings.socket_group)
    config = ListenerConfig(
        settings.listen,
        settings.workers,
        settings.to_json(),
        max_head_octets=settings.max_field_section,
        unix_access=unix_access,
        tls_addresses=settings.tls_listen,
    )
    raise_descriptor_limit()
    if refused := descriptors_refusal():
        sys.stderr.write(error_line(refused, sys.stderr))
        return ExitCode.SETTINGS_UNUSABLE
    with background_output():
        configure_logging(settings.log_level, settings.log_format)
        try:
            inherited = InheritedSockets.from_service_manager(os.environ, unsafe_listen=settings.unsafe_listen)
            return _serve(settings, config, command_line, inherited, unix_access)
        except (ListenFailed, EngineUnavailable, TlsUnusable) as exc:
            sys.stderr.write(error_line(str(exc), sys.stderr))
            return _exit_code(exc)
        except RuntimeError as exc:
            if not (said := no_thread(exc)):
                raise
            sys.stderr.write(error_line(said, sys.stderr))
            return ExitCode.FAILED


def _serve(
    settings: PlainSettings,
    config: ListenerConfig,
    command_line: CommandLine,
    inherited: InheritedSockets,
    unix_access: UnixAccess,
) -> int:
    manager = ServiceManager(os.environ)
    choice = engine_choice(settings.http2_engine)
    if choice.reason:
        _log.warning("portable HTTP/2 engine in use", reason=choice.reason)
    if changed := changed_sources():
        _log.warning("compiled modules do not match their sources: run make setup", changed=changed)
    if (refused := tracing_refusal(os.environ)) is not None:
        _log.warning("traces are off", reason=str(refused), remedy=refused.remedy)
    with ExitStack() as stack:
        takeover = _takeover(settings, inherited, stack)
        if settings.workers > 1:
            if settings.tls_listen and settings.tls_certificate is not None and settings.tls_key is not None:
                # Here, so that the error appears once, not once a worker.
                server_context(TlsFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca))
            # Imported only here: a single worker saves 0.8 MiB.
            from proxy.supervisor.reloading import Reloading
            from proxy.supervisor.workers import run_workers

            admin = stack.enter_context(_admin_socket(settings.admin, inherited, unix_access, takeover))
            return run_workers(
                config,
                work,
                drain_seconds=settings.drain_timeout,
                reloading=stack.enter_context(closing(Reloading(command_line, settings, config, manager))),
                inherited=replace(inherited, admin=admin),
                manager=manager,
                takeover=takeover,
            )
        # Imported only here: a supervisor saves 20 MiB.
        with lean_imports():
            from proxy.worker import run_worker

        admin = inherited.admin
        if takeover is not None:
            admin = stack.enter_context(_admin_socket(settings.admin, inherited, unix_access, takeover))
        sockets = config.create_sockets(inherited.listeners, takeover)
        try:
            run_worker(settings, config, sockets, command_line, admin_socket=admin, manager=manager, takeover=takeover)
        finally:
            config.release(sockets, remove_files=takeover is None or takeover.owns_files)
    return ExitCode.OK


def _takeover(settings: PlainSettings, inherited: InheritedSockets, stack: ExitStack) -> Takeover | None:
    """Return the way by which sidecars hand on their sockets, if there is one. Raises ListenFailed."""
    if settings.takeover_socket is None:
        return None
    if inherited.listeners:
        _log.warning("takeover_socket is not used: the service manager keeps the sockets open during a restart")
        return None
    # Imported only here: others save its memory.
    from proxy.downstream.takeover import Takeover

    return stack.enter_context(closing(Takeover.open(settings.takeover_socket)))


def work(config: ListenerConfig, channel: Channel) -> None:
    """Run one of several workers, in a process of its own; a log line says why it cannot serve."""
    with lean_imports():
        from proxy.worker import run_worker

    try:
        settings = PlainSettings.from_json(config.payload)
    except ValueError as exc:  # the package was upgraded in place since the supervisor started
        configure_logging("error", "auto")
        _end_worker(f"the supervisor runs another version of cloudrun-sidecar, restart it: {exc}", ExitCode.FAILED)
    with background_output():
        configure_logging(settings.log_level, settings.log_format)
        try:
            run_worker(settings, config, channel)
        except (ListenFailed, TlsUnusable) as exc:
            _end_worker(str(exc), _exit_code(exc))
        except RuntimeError as exc:
            if not (said := no_thread(exc)):
                raise
            _end_worker(said, ExitCode.FAILED)


def _end_worker(reason: str, code: ExitCode) -> NoReturn:
    """Say it as all log lines do: the sidecar goes on, and starts another worker."""
    _log.error("worker cannot serve", pid=os.getpid(), reason=reason)
    sys.exit(code)


def _exit_code(exc: ListenFailed | EngineUnavailable | TlsUnusable) -> ExitCode:
    return ExitCode.FAILED if isinstance(exc, ListenFailed) and exc.transient else ExitCode.SETTINGS_UNUSABLE


@contextmanager
def _admin_socket(
    admin: str, inherited: InheritedSockets, unix_access: UnixAccess, takeover: Takeover | None
) -> Iterator[socket.socket | None]:
    """Make the socket of the admin port that all workers accept from, unless it is inherited, taken over or off.

    So a connection that waits is lost neither to a worker that has died nor to one whose event loop stands still.
    Raises ListenFailed.
    """
    address = parse_address_or_off(admin)
    if inherited.admin is not None or address is None:
        yield inherited.admin
        return
    bound = takeover.socket_for("admin", admin) if takeover is not None else None
    try:
        if bound is None:
            bound = _bind(address, unix_access)
        elif address.path:
            unix_access.apply(address.path)
        file = SocketFile(address.path) if address.path else None
    except OSError as exc:
        raise ListenFailed(f"{admin} (admin)", exc) from exc
    if takeover is not None:
        takeover.offer("admin", admin, bound)
    with bound:
        try:
            yield bound
        finally:
            if file is not None and (takeover is None or takeover.owns_files):
                file.remove()


def _bind(address: Address, unix_access: UnixAccess) -> socket.socket:
    """Return a listening socket. Raises OSError.

    Workers of a supervisor that was killed may have the address for a moment: it is tried again for so long. Not with
    SO_REUSEPORT: two sidecars would share the port, and each get some of the requests for the other.
    """
    give_up = time.monotonic() + _ORPHANS_SECONDS
    while True:
        try:
            return _listening(address, unix_access)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or time.monotonic() >= give_up:
                raise
        time.sleep(_PAUSE_SECONDS)


def _listening(address: Address, unix_access: UnixAccess) -> socket.socket:
    bound = bind_unix(address.path, unix_access) if address.path else bind_tcp(address.host, address.port)
    try:
        bound.listen()
    except OSError:
        bound.close()
        raise
    return bound
