"""Workers for `run_workers`: functions that a new process finds by their names."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

from proxy.downstream.channel import (
    ABORT,
    CONNECTION,
    DRAIN,
    DRAINING,
    LAST,
    LEAVING,
    READY,
    WORKERS_DRAINING,
    WORKERS_READY,
    WORKERS_STARTING,
    Channel,
)
from proxy.downstream.config import ListenerConfig
from proxy.signals import HANDLED_SIGNALS


def _wait_for(channel: Channel, command: bytes) -> None:
    channel.socket.setblocking(True)
    while (message := channel.receive()[0]) != command:
        assert message, "the supervisor has exited"


def _receive(channel: Channel) -> tuple[bytes, int | None]:
    """Return the next message but those about other workers."""
    while (received := channel.receive())[0] in (WORKERS_STARTING, WORKERS_READY, WORKERS_DRAINING):
        pass
    return received


def obedient(config: ListenerConfig, channel: Channel) -> None:
    """Send the supervisor the signal in the payload, and exit on `DRAIN`."""
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) >= set(HANDLED_SIGNALS)
    os.kill(os.getppid(), getattr(signal, config.payload))
    _wait_for(channel, DRAIN)


def measuring(config: ListenerConfig, channel: Channel) -> None:
    """End the supervisor if the payload is half a million times the same letter, and exit on `DRAIN`."""
    assert config.payload == "ä" * 500_000
    os.kill(os.getppid(), signal.SIGTERM)
    _wait_for(channel, DRAIN)


def signalling(config: ListenerConfig, channel: Channel) -> None:
    """Send the supervisor a signal that must not end it, and then SIGTERM; exit on a single `DRAIN`."""
    os.kill(os.getppid(), getattr(signal, config.payload))
    os.kill(os.getppid(), signal.SIGTERM)
    _wait_for(channel, DRAIN)
    channel.socket.setblocking(False)
    try:
        message, _ = _receive(channel)
    except BlockingIOError:
        return
    raise AssertionError(f"received {message!r} as well")


def reluctant(config: ListenerConfig, channel: Channel) -> None:
    """Send the supervisor two SIGTERM, and exit only on `ABORT`."""
    os.kill(os.getppid(), signal.SIGTERM)
    _wait_for(channel, DRAIN)
    os.kill(os.getppid(), signal.SIGTERM)
    _wait_for(channel, ABORT)


def stuck(config: ListenerConfig, channel: Channel) -> None:
    """Send the supervisor SIGTERM, and never exit."""
    os.kill(os.getppid(), signal.SIGTERM)
    while True:
        signal.pause()


def failing(config: ListenerConfig, channel: Channel) -> None:
    """Exit with the code in the payload."""
    sys.exit(int(config.payload))


def killed(config: ListenerConfig, channel: Channel) -> None:
    """The first worker kills itself before it is ready; the other exits on `DRAIN`."""
    if _first(config):
        os.kill(os.getpid(), signal.SIGKILL)
    _wait_for(channel, DRAIN)


def dying(config: ListenerConfig, channel: Channel) -> None:
    """The first worker becomes ready, waits for a connection and exits with 3, its first successor exits before it is
    ready; the third one sends the supervisor SIGTERM, and exits on `DRAIN`.
    """
    channel.socket.setblocking(True)
    if _first(config):
        channel.report(READY)
        _receive(channel)
        sys.exit(3)
    if not (second := Path(config.payload, "second")).exists():
        second.touch()
        sys.exit(4)
    channel.report(READY)
    os.kill(os.getppid(), signal.SIGTERM)
    _wait_for(channel, DRAIN)


def told(config: ListenerConfig, channel: Channel) -> None:
    """The first worker and its successor become ready, report that they drain, and exit with 0; the third one sends the
    supervisor SIGTERM, and exits on `DRAIN`.
    """
    channel.report(READY)
    if not _first(config):
        if (second := Path(config.payload, "second")).exists():
            os.kill(os.getppid(), signal.SIGTERM)
            _wait_for(channel, DRAIN)
        second.touch()
    channel.report(DRAINING)


def brief(config: ListenerConfig, channel: Channel) -> None:
    """The first worker exits with 3 once both are ready, which the other tells it by the FIFO `ready` in the payload's
    folder; its successor sends the supervisor SIGTERM, and all but the first one exit on `DRAIN`.
    """
    channel.report(READY)
    ready = Path(config.payload, "ready")
    if _first(config):
        ready.read_bytes()
        ready.unlink()
        sys.exit(3)
    if ready.exists():
        ready.write_bytes(b"")
    else:
        os.kill(os.getppid(), signal.SIGTERM)
    _wait_for(channel, DRAIN)


def told_together(config: ListenerConfig, channel: Channel) -> None:
    """The first two workers become ready and drain; a third one sends the supervisor SIGTERM. All exit on `DRAIN`."""
    channel.report(READY)
    if _first(config) or _second(config):
        channel.report(DRAINING)
    else:
        os.kill(os.getppid(), signal.SIGTERM)
    _wait_for(channel, DRAIN)


def late(config: ListenerConfig, channel: Channel) -> None:
    """The first worker becomes ready and exits with 3; its successor sends the supervisor SIGTERM before it is ready,
    and exits with 4 on `DRAIN`.
    """
    if _first(config):
        channel.report(READY)
        sys.exit(3)
    os.kill(os.getppid(), signal.SIGTERM)
    _wait_for(channel, DRAIN)
    sys.exit(4)


def hanging(config: ListenerConfig, channel: Channel) -> None:
    """Never become ready, and never exit."""
    while True:
        signal.pause()


def standing(config: ListenerConfig, channel: Channel) -> None:
    """The first worker becomes ready and reports nothing more; its successor sends the supervisor SIGTERM, and exits on
    `DRAIN`.
    """
    channel.report(READY)
    if _first(config):
        hanging(config, channel)
    os.kill(os.getppid(), signal.SIGTERM)
    _wait_for(channel, DRAIN)


def answering(config: ListenerConfig, channel: Channel) -> None:
    """Send the process id on every connection, and keep it open until the client closes it."""
    channel.report(READY)
    channel.socket.setblocking(True)
    while (received := _receive(channel))[0] == CONNECTION:
        descriptor = received[1]
        assert descriptor is not None
        with socket.socket(fileno=descriptor) as connection:
            connection.setblocking(True)
            connection.sendall(str(os.getpid()).encode())
            connection.detach()
    if received[0] != DRAIN:
        sys.exit("the supervisor has exited")


def closing(config: ListenerConfig, channel: Channel) -> None:
    """Send the process id on every connection; the first worker closes two of its first three."""
    channel.report(READY)
    channel.socket.setblocking(True)
    mine: list[socket.socket] = []
    patient = not _first(config)
    while (received := _receive(channel))[0] == CONNECTION:
        descriptor = received[1]
        assert descriptor is not None
        mine.append(socket.socket(fileno=descriptor))
        mine[-1].setblocking(True)
        if len(mine) == 3 and not patient:
            for connection in mine[:-1]:
                connection.close()
                channel.connection_closed()
            patient = True
        mine[-1].sendall(str(os.getpid()).encode())


def leaving(config: ListenerConfig, channel: Channel) -> None:
    """On `DRAIN`, which the first worker asks for, report `LEAVING`; send the process id on connections after that."""
    channel.report(READY)
    channel.socket.setblocking(True)
    if _first(config):
        os.kill(os.getppid(), signal.SIGTERM)
    while _receive(channel)[0] != DRAIN:
        pass
    channel.report(LEAVING)
    while (received := _receive(channel))[0] != LAST:
        assert received[1] is not None
        with socket.socket(fileno=received[1]) as connection:
            connection.setblocking(True)
            connection.sendall(str(os.getpid()).encode())


def lingering(config: ListenerConfig, channel: Channel) -> None:
    """The first worker has the supervisor drain, leaves, and sends it another SIGTERM; both exit on `ABORT`."""
    channel.report(READY)
    if _first(config):
        os.kill(os.getppid(), signal.SIGTERM)
        _wait_for(channel, DRAIN)
        channel.report(LEAVING)
        _wait_for(channel, LAST)
        os.kill(os.getppid(), signal.SIGTERM)
    _wait_for(channel, ABORT)


def deaf(config: ListenerConfig, channel: Channel) -> None:
    """The first worker reads nothing; the other one answers, and ends the first one at its exit."""
    if _first(config):
        channel.report(READY)
        signal.sigwait([signal.SIGUSR1])
    else:
        answering(config, channel)
        os.kill(int(Path(config.payload, "pid").read_text()), signal.SIGUSR1)


def _second(config: ListenerConfig) -> bool:
    """Return True in one worker."""
    try:
        os.mkdir(f"{config.payload}/second")
    except FileExistsError:
        return False
    return True


def _first(config: ListenerConfig) -> bool:
    """Return True in one worker, and write its process id into the folder in the payload."""
    try:
        os.mkdir(f"{config.payload}/first")
    except FileExistsError:
        return False
    Path(config.payload, "pid").write_text(str(os.getpid()))
    return True
