"""Both ends of a worker's channel."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from proxy.downstream import channel as messages
from proxy.downstream.channel import (
    ABORT,
    ANSWER,
    CLOSED,
    COLLECT,
    CONNECTION,
    DRAIN,
    DRAINING,
    LAST,
    LEAVING,
    PROBLEMS,
    READY,
    SETTINGS,
    SETTINGS_KEPT,
    SETTINGS_TAKEN,
    STATE,
    TLS_CONNECTION,
    Channel,
    file_in_memory,
)
from proxy.supervisor.channel import WorkerChannel


@pytest.fixture
def ends() -> Iterator[tuple[WorkerChannel, Channel]]:
    ours, its = socket.socketpair()
    its.setblocking(False)
    with ours, its:
        yield WorkerChannel(ours), Channel(its, [])


def connected() -> tuple[socket.socket, socket.socket]:
    accepted, peer = socket.socketpair()
    return accepted, peer


def received(channel: Channel) -> socket.socket:
    message, descriptor = channel.receive()
    assert message == CONNECTION
    assert descriptor is not None
    return socket.socket(fileno=descriptor)


def test_a_connection_arrives_and_only_the_worker_has_it(ends: tuple[WorkerChannel, Channel]) -> None:
    supervisor, worker = ends
    accepted, peer = connected()
    supervisor.hand_over(accepted)
    assert accepted.fileno() == -1
    with peer:
        with received(worker) as its:
            assert not its.get_inheritable()
            its.sendall(b"hello")
            assert peer.recv(5) == b"hello"
        assert peer.recv(5) == b""  # no other process has it


def test_commands_and_connections_keep_their_order(ends: tuple[WorkerChannel, Channel]) -> None:
    supervisor, worker = ends
    peers = []
    for _ in range(2):
        accepted, peer = connected()
        peers.append(peer)
        supervisor.hand_over(accepted)
    supervisor.send_command(DRAIN)
    supervisor.send_command(ABORT)
    for peer in peers:
        with received(worker) as its, peer:
            its.sendall(b"x")
            assert peer.recv(1) == b"x"
    assert [worker.receive(), worker.receive()] == [(DRAIN, None), (ABORT, None)]
    with pytest.raises(BlockingIOError):
        worker.receive()


def test_closed_connections_are_counted(ends: tuple[WorkerChannel, Channel]) -> None:
    supervisor, worker = ends
    for _ in range(3):
        accepted, peer = connected()
        supervisor.hand_over(accepted)
        peer.close()
    supervisor.read_reports()
    assert supervisor.connections == 3
    worker.connection_closed()
    worker.connection_closed()
    supervisor.read_reports()
    assert supervisor.connections == 1


def test_reports_wait_while_the_supervisor_does_not_read(ends: tuple[WorkerChannel, Channel]) -> None:
    supervisor, worker = ends
    supervisor.connections = 100_000
    for _ in range(100_000):
        worker.connection_closed()
    while supervisor.connections > 1_000:
        before = supervisor.connections
        supervisor.read_reports()
        if supervisor.connections == before:  # all that could be sent has been read
            worker.connection_closed()
    while supervisor.connections >= 0:
        supervisor.read_reports()
        if supervisor.connections == 0:
            worker.connection_closed()


def test_settings_of_any_length_arrive_whole_and_are_answered(ends: tuple[WorkerChannel, Channel]) -> None:
    supervisor, worker = ends
    contents = [b"x" * 3_000_000, b"", b"last"]
    for content in contents:
        supervisor.send_document(SETTINGS, content)
    supervisor.send_document(PROBLEMS, b"[]")
    for content in [*contents, b"[]"]:
        message, descriptor = worker.receive()
        assert message == (PROBLEMS if content == b"[]" else SETTINGS)
        assert descriptor is not None
        with open(descriptor, "rb") as file:
            file.seek(0)
            assert file.read() == content
    assert supervisor.settings_awaited == 3
    worker.report(SETTINGS_TAKEN)
    worker.report(SETTINGS_KEPT)
    supervisor.read_reports()
    assert (supervisor.settings_awaited, supervisor.settings_kept) == (1, 1)


def test_unsent_settings_are_closed_with_the_channel(ends: tuple[WorkerChannel, Channel]) -> None:
    supervisor, _ = ends
    before = len(os.listdir("/proc/self/fd"))
    while not supervisor.has_unsent:
        supervisor.send_document(PROBLEMS, b"[]")
    assert supervisor.close() == []
    assert len(os.listdir("/proc/self/fd")) < before


def test_a_collection_that_cannot_be_made_whole_is_not_sent_in_part(
    ends: tuple[WorkerChannel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor, worker = ends
    duplicate, copies = os.dup, [1]

    def scarce(descriptor: int) -> int:
        if not copies:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        copies.pop()
        return duplicate(descriptor)

    with messages.file_in_memory() as one, messages.file_in_memory() as other:
        before = len(os.listdir("/dev/fd"))
        with monkeypatch.context() as few:
            few.setattr(os, "dup", scarce)
            with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                supervisor.send_collection([one, other], b"known")
        assert len(os.listdir("/dev/fd")) == before
        supervisor.send_collection([one, other], b"known")
    for expected in (messages.STATE, messages.STATE, messages.COLLECTED):
        message, descriptor = worker.receive()
        assert message == expected
        assert descriptor is not None
        os.close(descriptor)


def test_messages_for_a_full_channel_are_sent_later(ends: tuple[WorkerChannel, Channel]) -> None:
    supervisor, worker = ends
    sent = 0
    while not supervisor.has_unsent:
        supervisor.send_command(DRAIN)
        sent += 1
    full_since = supervisor.full_since
    accepted, peer = connected()
    supervisor.hand_over(accepted)
    assert accepted.fileno() >= 0
    assert supervisor.full_since == full_since > 0.0, "it is as long as nothing was taken"
    for _ in range(sent - 1):
        assert worker.receive() == (DRAIN, None)
    supervisor.flush()
    assert not supervisor.has_unsent
    assert supervisor.full_since == 0.0
    assert worker.receive() == (DRAIN, None)
    with received(worker) as its, peer:
        its.sendall(b"x")
        assert peer.recv(1) == b"x"


def test_after_the_exit_of_a_worker_unsent_connections_are_returned(ends: tuple[WorkerChannel, Channel]) -> None:
    supervisor, worker = ends
    worker.socket.close()
    accepted, peer = connected()
    other, other_peer = connected()
    supervisor.hand_over(accepted)
    supervisor.hand_over(other, tls=True)
    assert supervisor.gone
    assert supervisor.close() == [(accepted, False), (other, True)]
    for one in (accepted, peer, other, other_peer):
        one.close()


def test_the_exit_of_a_worker_is_noticed(ends: tuple[WorkerChannel, Channel]) -> None:
    supervisor, worker = ends
    supervisor.read_reports()
    assert not supervisor.gone
    worker.socket.close()
    supervisor.read_reports()
    assert supervisor.gone


def test_the_exit_of_the_supervisor_is_noticed(ends: tuple[WorkerChannel, Channel]) -> None:
    supervisor, worker = ends
    supervisor.close()
    assert worker.receive() == (b"", None)
    worker.connection_closed()  # no longer read


def test_no_two_messages_to_a_worker_are_the_same_octet() -> None:
    names = ["CONNECTION", "TLS_CONNECTION", "DRAIN", "ABORT", "SETTINGS", "PROBLEMS", "REPORT", "STATE", "COLLECTED"]
    names += ["WORKERS_STARTING", "WORKERS_READY", "WORKERS_DRAINING"]
    to_a_worker = [getattr(messages, name) for name in names]
    assert len({*to_a_worker}) == len(names)
    assert {len(message) for message in to_a_worker} == {1}


def test_what_a_worker_has_reported_holds_after_its_next_report() -> None:
    said = ("ready", "draining", "leaving", "wants_states")
    ours, its = socket.socketpair()
    with its:
        reported = WorkerChannel(ours)
        assert not any(getattr(reported, name) for name in said)
        reported.alive = False
        for name, report in zip(said, (READY, DRAINING, LEAVING, COLLECT), strict=True):
            its.send(report)
            assert reported.read_reports()
            assert getattr(reported, name)
        its.send(CLOSED)
        assert reported.read_reports()
        assert all(getattr(reported, name) for name in said)
        assert reported.alive
    assert not reported.read_reports()
    assert reported.gone
    reported.close()


def test_the_last_state_is_kept_and_no_other_program_inherits_it() -> None:
    ours, its = socket.socketpair()
    with its:
        channel = WorkerChannel(ours)
        channel.answer_awaited = True
        kept = []
        for _ in range(2):
            with file_in_memory() as file:
                socket.send_fds(its, [ANSWER], [file.fileno()])
            channel.read_reports()
            assert channel.state is not None
            kept.append(channel.state)
        assert not channel.answer_awaited
        assert kept[0].closed
        assert not kept[1].closed
        assert not os.get_inheritable(kept[1].fileno())
        kept[1].close()
        channel.close()


def test_a_worker_that_leaves_is_sent_the_last_connections_and_commands_after_them() -> None:
    ours, its = socket.socketpair()
    with its, ExitStack() as stack:
        channel = WorkerChannel(ours)
        channel.leaving = True
        pairs = [socket.socketpair() for _ in range(2)]
        for _, peer in pairs:
            stack.enter_context(peer)
        channel.hand_over_last([(pairs[0][0], False), (pairs[1][0], True)])
        assert channel.connections == 2
        channel.send_command(LAST)
        channel.send_command(ABORT)
        assert not channel.has_unsent
        messages = b""
        while not messages.endswith(ABORT):
            message, descriptors, _, _ = socket.recv_fds(its, 1, 1)
            for descriptor in descriptors:
                os.close(descriptor)
            messages += message
        assert messages == CONNECTION + TLS_CONNECTION + LAST + ABORT
        channel.close()


def test_what_a_worker_has_reported_before_its_exit_is_kept_though_it_is_sent_something_first() -> None:
    ours, its = socket.socketpair()
    channel = WorkerChannel(ours)
    with its, file_in_memory() as file:
        file.write(b"its last state")
        its.send(DRAINING + LEAVING + CLOSED)
        socket.send_fds(its, [STATE], [file.fileno()])
    channel.connections = 1
    channel.send_command(DRAIN)
    assert channel.gone
    assert (channel.draining, channel.leaving, channel.connections) == (True, True, 0)
    assert channel.state is not None
    assert os.pread(channel.state.fileno(), 100, 0) == b"its last state"
    channel.state.close()
    channel.close()
