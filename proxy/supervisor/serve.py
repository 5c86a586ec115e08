"""What `cloudrun-sidecar serve` runs once its settings are read."""

from __future__ import annotations

import sys
from typing import Final

import structlog

from proxy.compiled import changed_sources
from proxy.downstream.binding import ListenFailed, bind_tcp
from proxy.downstream.channel import Channel
from proxy.downstream.config import ListenerConfig
from proxy.exit_codes import ExitCode
from proxy.http2.choice import EngineUnavailable, engine_choice
from proxy.observe import background_output, configure_logging
from proxy.settings.plain import PlainSettings

__all__ = ["serve"]

_log: Final = structlog.get_logger("sidecar")


def serve(settings: PlainSettings) -> int:
    """Serve with these settings until told to end.

    Returns the `ExitCode`; where it is not 0, the reason is on standard error.
    """
    config = ListenerConfig(
        settings.listen, settings.workers, settings.to_json(), max_head_octets=settings.max_field_section
    )
    with background_output():
        configure_logging(settings.log_level, settings.log_format)
        try:
            return _serve(settings, config)
        except (ListenFailed, EngineUnavailable) as exc:
            return _refused(exc)


def _serve(settings: PlainSettings, config: ListenerConfig) -> int:
    choice = engine_choice(settings.http2_engine)
    if choice.reason:
        _log.warning("portable HTTP/2 engine in use", reason=choice.reason)
    if changed := changed_sources():
        _log.warning("compiled modules are not those of their sources: build them again (make setup)", changed=changed)
    if settings.workers > 1:
        # Not where one serves alone: what starts others is 0.8 MiB.
        from proxy.supervisor.workers import run_workers

        _try_admin(settings.admin)
        return run_workers(config, work, drain_seconds=settings.drain_timeout)
    # Not in a supervisor: what serves is 20 MiB.
    from proxy.worker import run_worker

    sockets = config.create_sockets()
    try:
        run_worker(settings, config, sockets)
    finally:
        config.release(sockets)
    return ExitCode.OK


def work(config: ListenerConfig, channel: Channel) -> None:
    """Be one of several workers; it has this process for itself."""
    from proxy.worker import run_worker

    settings = PlainSettings.from_json(config.payload)
    with background_output():
        configure_logging(settings.log_level, settings.log_format)
        try:
            run_worker(settings, config, channel)
        except ListenFailed as exc:
            sys.exit(_refused(exc))


def _refused(exc: ListenFailed | EngineUnavailable) -> ExitCode:
    """Say why there is nothing to serve, and return the exit code."""
    sys.stderr.write(f"cloudrun-sidecar: {exc}\n")
    return ExitCode.FAILED if isinstance(exc, ListenFailed) and exc.transient else ExitCode.SETTINGS_UNUSABLE


def _try_admin(admin: str) -> None:
    """Raise ListenFailed where the workers could not share the admin port: each of them would say so."""
    if admin == "off" or admin.startswith("unix:"):
        return
    host, _, port = admin.rpartition(":")
    try:
        with bind_tcp(host.strip("[]"), int(port), reuse_port=True) as bound:
            bound.listen()
    except OSError as exc:
        raise ListenFailed(f"{admin} (admin)", exc) from exc
