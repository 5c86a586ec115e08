"""A process takes over the listening sockets of another one; here both are in this process."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from proxy.downstream import takeover as module
from proxy.downstream.binding import ListenFailed
from proxy.downstream.takeover import Takeover


@contextmanager
def running(takeover: Takeover) -> Iterator[threading.Event]:
    """Let it hand on its sockets, in a thread; the event is set once it has."""
    selector = selectors.DefaultSelector()
    taken = threading.Event()
    ours, its = socket.socketpair()

    def watch(watched: socket.socket, call: object) -> None:
        selector.register(watched, selectors.EVENT_READ, call)

    def serve() -> None:
        while its.fileno() in (descriptors := selector.get_map()) and descriptors:
            for key, _ in selector.select():
                if key.data is None:
                    return
                key.data()

    selector.register(its, selectors.EVENT_READ, None)
    takeover.start(watch, selector.unregister, taken.set)
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield taken
    finally:
        ours.send(b"x")
        thread.join()
        takeover.close()
        selector.close()
        ours.close()
        its.close()


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/takeover"


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def names(takeover: Takeover) -> list[tuple[str, str]]:
    return [(setting, given) for setting, given, _ in takeover._received]


def test_sockets_are_found_by_setting_and_address_as_given_or_as_bound(address: str, listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    before = Takeover.open(address)
    for setting, given in (("listen", "127.0.0.1:0"), ("admin", "127.0.0.1:0"), ("listen", "localhost:1")):
        before.offer(setting, given, listening)
    with running(before) as taken:
        after = Takeover.open(address)
        assert after.socket_for("tls_listen", "127.0.0.1:0") is None
        assert after.socket_for("listen", "127.0.0.1:1") is None
        found = [after.socket_for("listen", "127.0.0.1:0"), after.socket_for("listen", f"127.0.0.1:{port}")]
        assert after.socket_for("listen", "127.0.0.1:0") is None
        (unused,) = [one for *_, one in after._received]
        with capture_logs() as lines:
            after.complete()
        assert taken.wait(10)
        assert unused.fileno() == -1
        assert [line["event"] for line in lines if "before" in line] == ["listening sockets taken over"]
        for one in found:
            assert one is not None
            assert one.getsockname() == listening.getsockname()
            assert not one.get_inheritable()
            one.close()
        after.close()


def test_the_file_is_for_its_owner_and_is_removed_by_the_last_process(address: str, tmp_path: Path) -> None:
    before = Takeover.open(address)
    assert (tmp_path / "takeover").stat().st_mode & 0o777 == 0o600
    assert before.owns_files
    with running(before) as taken:
        after = Takeover.open(address)
        assert not after.owns_files
        after.complete()
        assert taken.wait(10)
        assert after.owns_files
        assert not before.owns_files
    with running(after) as taken:
        last = Takeover.open(address)
        last.complete()
        assert taken.wait(10)
    assert (tmp_path / "takeover").exists()
    last.close()
    assert not (tmp_path / "takeover").exists()


def test_a_process_that_ends_while_the_next_one_starts_leaves_it_the_file(address: str, tmp_path: Path) -> None:
    before = Takeover.open(address)
    with running(before):
        after = Takeover.open(address)
        with pytest.raises(ListenFailed, match="another process is about to take over"):
            Takeover.open(address)  # so the other thread is done with the first one
        assert not before.owns_files
    with capture_logs() as lines:
        after.complete()
    assert [line["log_level"] for line in lines] == ["warning"]
    assert (tmp_path / "takeover").exists()
    after.close()
    assert not (tmp_path / "takeover").exists()


def test_a_process_that_fails_leaves_everything_as_it_was(
    address: str, tmp_path: Path, listening: socket.socket
) -> None:
    before = Takeover.open(address)
    before.offer("listen", "127.0.0.1:0", listening)
    with capture_logs() as lines, running(before) as taken:
        for _ in range(2):
            failing = Takeover.open(address)
            assert names(failing) == [("listen", "127.0.0.1:0")]
            failing.close()
        assert (tmp_path / "takeover").exists()
        after = Takeover.open(address)
        assert not taken.is_set()
        after.complete()
        assert taken.wait(10)
        after.close()
    said = [line["pid"] for line in lines if "ended before it was ready" in line["event"]]
    assert said == [os.getpid()] * 2


def test_a_socket_whose_file_was_removed_is_not_taken_over(address: str, tmp_path: Path) -> None:
    before = Takeover.open(address)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"{tmp_path}/s")
        unix.listen()
        before.offer("listen", f"unix:{tmp_path}/s", unix)
        with running(before):
            first = Takeover.open(address)
            found = first.socket_for("listen", f"unix:{tmp_path}/s")
            assert found is not None
            found.close()
            first.close()
            (tmp_path / "s").unlink()
            second = Takeover.open(address)
            assert second.socket_for("listen", f"unix:{tmp_path}/s") is None
            second.close()


def test_two_processes_cannot_take_over_at_once(address: str) -> None:
    with running(Takeover.open(address)):
        first = Takeover.open(address)
        with pytest.raises(ListenFailed, match=f"another process is about to take over: {os.getpid()}") as raised:
            Takeover.open(address)
        assert raised.value.transient
        first.complete()
        first.close()


def test_a_process_that_is_not_ready_in_time_gives_way(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_START_SECONDS", 0.0)
    with running(Takeover.open(address)) as taken:
        slow = Takeover.open(address)
        quick = Takeover.open(address)
        with pytest.raises(ListenFailed, match="was not ready within"):
            slow.complete()
        assert not taken.is_set()
        quick.complete()
        assert taken.wait(10)
        slow.close()
        quick.close()


def test_another_user_gets_no_socket(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with capture_logs() as lines, running(Takeover.open(address)):
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
        with pytest.raises(ListenFailed, match=f"it runs as user {user}, and this one as user {user + 1}"):
            Takeover.open(address)
        # As one would that does not look first.
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(address.removeprefix("unix:"))
            assert socket.recv_fds(other, 1, 1)[:2] == (b"", [])
    assert lines[-1]["event"] == "takeover refused: another user asks for it"
    assert lines[-1]["user"] == user


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "it has closed the connection"),
        (b"HTTP/1.1 400 Bad Request\r\n\n", "it is another program or version; end it, then start this one"),
        (b'{"pid": 1, "sockets": [["takeover_socket", "/elsewhere"]]}\n', "it is another program or version"),
        (b"[]\n", "it is another program or version"),
        (b"{}\n", "it is another program or version"),
        (b'{"pid": 1, "sockets": null}\n', "it is another program or version"),
        (b'{"pid": null, "sockets": []}\n', "it is another program or version"),
        (b'{"pid": 1, "sockets": ["takeover_socket"]}\n', "it is another program or version"),
        (None, "timed out"),
    ],
)
def test_what_does_not_hand_over_sockets_is_named(
    address: str, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, reason: str
) -> None:
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 10.0 if answer is not None else 0.01)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(address.removeprefix("unix:"))
        other.listen()

        def speak() -> None:
            connection, _ = other.accept()
            with connection:
                connection.send(answer or b"")

        thread = threading.Thread(target=speak)
        if answer is not None:
            thread.start()
        with pytest.raises(ListenFailed, match=rf"takeover_socket\): .*does not hand over its sockets: .*{reason}"):
            Takeover.open(address)
        if answer is not None:
            thread.join()


def test_a_path_that_is_written_in_another_way_is_named(address: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with running(Takeover.open(address)) as taken:
        with pytest.raises(ListenFailed, match=f"its takeover_socket is {address}; write it in the same way"):
            Takeover.open(f"unix:{tmp_path}/link/takeover")
        assert not taken.is_set()


def test_a_file_of_another_user_is_named_with_both_users(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(connection: socket.socket, path: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    Path(address.removeprefix("unix:")).touch()
    user = os.geteuid()
    monkeypatch.setattr(socket, "socket", type("Refused", (socket.socket,), {"connect": refuse}))
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    expected = f"it belongs to user {user}, and this process runs as user {user + 1}; both must be the same"
    with pytest.raises(ListenFailed, match=expected) as failed:
        Takeover.open(address)
    assert not failed.value.transient


def test_after_the_death_of_the_process_before_the_new_one_serves(address: str, listening: socket.socket) -> None:
    before = Takeover.open(address)
    before.offer("listen", "127.0.0.1:0", listening)
    with running(before) as taken:
        after = Takeover.open(address)
    with capture_logs() as lines:
        after.complete()
    assert not taken.is_set()
    assert [line["log_level"] for line in lines] == ["warning"]
    assert after.owns_files
    after.close()


def test_what_else_connects_changes_nothing(address: str) -> None:
    with running(Takeover.open(address)) as taken:
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(address.removeprefix("unix:"))
            other.send(b"GET / ")
            while other.recv(4096):
                pass
        after = Takeover.open(address)
        assert not taken.is_set()
        after.complete()
        assert taken.wait(10)
        after.close()
