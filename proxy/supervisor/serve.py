"""Runs `cloudrun-sidecar serve` once its settings are read."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from typing import Final

import structlog

from proxy.compiled import changed_sources
from proxy.downstream.binding import ListenFailed, UnixAccess, bind_tcp
from proxy.downstream.channel import Channel
from proxy.downstream.config import ListenerConfig
from proxy.downstream.inherited import InheritedSockets
from proxy.exit_codes import ExitCode
from proxy.http2.choice import EngineUnavailable, engine_choice
from proxy.network.address import parse_address_or_off
from proxy.network.descriptors import raise_descriptor_limit
from proxy.network.service_manager import ServiceManager
from proxy.observe.background import background_output
from proxy.observe.lines import configure_logging
from proxy.observe.tracing import tracing_refusal
from proxy.settings.plain import PlainSettings
from proxy.settings.reading import CommandLine

__all__ = ["serve"]

_log: Final = structlog.get_logger("sidecar")


def serve(settings: PlainSettings, command_line: CommandLine) -> int:
    """Serve with these settings until a signal ends it; `command_line` is what they are read from again.

    Returns the `ExitCode`; if it is not 0, the reason is on standard error.
    """
    config = ListenerConfig(
        settings.listen,
        settings.workers,
        settings.to_json(),
        max_head_octets=settings.max_field_section,
        unix_access=UnixAccess.parse(settings.socket_mode, settings.socket_user, settings.socket_group),
    )
    raise_descriptor_limit()
    with background_output():
        configure_logging(settings.log_level, settings.log_format)
        try:
            inherited = InheritedSockets.from_service_manager(os.environ, unsafe_listen=settings.unsafe_listen)
            return _serve(settings, config, command_line, inherited, ServiceManager(os.environ))
        except (ListenFailed, EngineUnavailable) as exc:
            return _report(exc)


def _serve(
    settings: PlainSettings,
    config: ListenerConfig,
    command_line: CommandLine,
    inherited: InheritedSockets,
    manager: ServiceManager,
) -> int:
    choice = engine_choice(settings.http2_engine)
    if choice.reason:
        _log.warning("portable HTTP/2 engine in use", reason=choice.reason)
    if changed := changed_sources():
        _log.warning("compiled modules do not match their sources: run make setup", changed=changed)
    if (refused := tracing_refusal(os.environ)) is not None:
        _log.warning("traces are off", reason=str(refused), remedy=refused.remedy)
    if settings.workers > 1:
        # Imported only here: a single worker saves 0.8 MiB.
        from proxy.supervisor.reloading import Reloading
        from proxy.supervisor.workers import run_workers

        if inherited.admin is None:
            _check_admin_address(settings.admin)
        with closing(Reloading(command_line, settings, config)) as reloading:
            return run_workers(
                config,
                work,
                drain_seconds=settings.drain_timeout,
                reloading=reloading,
                inherited=inherited,
                manager=manager,
            )
    # Imported only here: a supervisor saves 20 MiB.
    from proxy.worker import run_worker

    sockets = config.create_sockets(inherited.listeners)
    try:
        run_worker(settings, config, sockets, command_line, admin_socket=inherited.admin, manager=manager)
    finally:
        config.release(sockets)
    return ExitCode.OK


def work(config: ListenerConfig, channel: Channel) -> None:
    """Run one of several workers, in a process of its own."""
    from proxy.worker import run_worker

    settings = PlainSettings.from_json(config.payload)
    with background_output():
        configure_logging(settings.log_level, settings.log_format)
        try:
            run_worker(settings, config, channel)
        except ListenFailed as exc:
            sys.exit(_report(exc))


def _report(exc: ListenFailed | EngineUnavailable) -> ExitCode:
    """Write the reason to standard error, and return the exit code."""
    sys.stderr.write(f"cloudrun-sidecar: {exc}\n")
    return ExitCode.FAILED if isinstance(exc, ListenFailed) and exc.transient else ExitCode.SETTINGS_UNUSABLE


def _check_admin_address(admin: str) -> None:
    """Raise ListenFailed if workers cannot share the admin port, so that the error appears once, not once a worker."""
    address = parse_address_or_off(admin)
    if address is None or address.path:
        return
    try:
        with bind_tcp(address.host, address.port, reuse_port=True) as bound:
            bound.listen()
    except OSError as exc:
        raise ListenFailed(f"{admin} (admin)", exc) from exc
