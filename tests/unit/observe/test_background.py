"""Output that never blocks, on real pipes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import structlog

from proxy.observe.background import BackgroundStream, background_output, dropped_lines
from proxy.observe.lines import configure_logging


@contextmanager
def full_pipe(max_queued_octets: int) -> Iterator[BackgroundStream]:
    """A stream to a pipe that takes nothing; at the end nobody reads the pipe, and the thread of the stream ends.

    A thread that went on would write to the descriptor's number, which another pipe has by then.
    """
    reading, writing = os.pipe()
    fill(writing)
    with open(writing, "w", encoding="utf-8") as target:
        stream = BackgroundStream(target, max_queued_octets)
        try:
            yield stream
        finally:
            os.close(reading)
            assert not stream.close_within(60)
            assert stream._thread is not None
            assert not stream._thread.is_alive()


def read_all(descriptor: int, awaited: bytes = b"", seen: threading.Event | None = None) -> bytes:
    """Everything until the last writer closes; `seen` is set once `awaited` is in it."""
    read = bytearray()
    while piece := os.read(descriptor, 1 << 16):
        read += piece
        if seen is not None and awaited in read:
            seen.set()
    return bytes(read)


def fill(descriptor: int) -> None:
    """Write until the pipe takes nothing more."""
    os.set_blocking(descriptor, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(descriptor, bytes(4096))
    os.set_blocking(descriptor, True)


def test_lines_arrive_in_order_and_whole() -> None:
    reading, writing = os.pipe()
    with open(writing, "w", encoding="utf-8") as target:
        stream = BackgroundStream(target)
        expected = [f"line {number} é" for number in range(2000)]
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(read_all(reading)))
        reader.start()
        for line in expected:
            stream.write(line[:3])
            stream.write(line[3:] + "\n")
        assert stream.close_within(10)
    reader.join()
    os.close(reading)
    assert got[0].decode().splitlines() == expected
    assert stream.dropped == 0


def test_no_other_process_writes_to_a_pipe_in_the_middle_of_a_line() -> None:
    reading, writing = os.pipe()
    take_lock = "import fcntl; fcntl.lockf(1, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with open(writing, "w", encoding="utf-8") as target:
        stream = BackgroundStream(target)
        stream.write("x" * 500_000 + "\n")
        assert os.read(reading, 1)  # the pipe is smaller: the rest of the line waits
        other = subprocess.run([sys.executable, "-c", take_lock], stdout=target, stderr=subprocess.PIPE, check=False)
        assert b"BlockingIOError" in other.stderr
        reader = threading.Thread(target=read_all, args=[reading])
        reader.start()
        assert stream.close_within(60)
        subprocess.run([sys.executable, "-c", take_lock], stdout=target, check=True)
    reader.join()
    os.close(reading)


def test_a_reader_that_stops_blocks_no_writer_and_dropped_lines_are_counted() -> None:
    with full_pipe(max_queued_octets=10_000) as stream:
        for _ in range(15):
            stream.write("x" * 999 + "\n")
        assert stream.dropped == 5
        assert not stream.close_within(0)
        stream.write("too late\n")
        assert stream.dropped == 6


def test_a_line_says_how_many_were_dropped_once_the_reader_has_caught_up(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with open(writing, "w", encoding="utf-8") as target:
        monkeypatch.setattr(sys, "stderr", target)
        before = dropped_lines()
        with background_output():
            configure_logging("info", "json")
            log = structlog.get_logger("x")
            while dropped_lines() == before:
                log.info("hello", padding="x" * 10_000)
            log.info("lost", padding="x" * 2_000_000)  # longer than the whole queue
            got: list[bytes] = []
            caught_up = threading.Event()
            reader = threading.Thread(target=lambda: got.append(read_all(reading, b'"dropped"', caught_up)))
            reader.start()
            # The end of the output waits a second for what is queued, which a busy machine may need longer to read.
            assert caught_up.wait(60)
        assert sys.stderr is target
    reader.join()
    os.close(reading)
    lines = [json.loads(line) for line in got[0].decode().splitlines()]
    reports = [line for line in lines if "dropped" in line]
    assert [line["message"] for line in lines if "dropped" not in line] == ["hello"] * (len(lines) - len(reports))
    assert sum(line["dropped"] for line in reports) == dropped_lines() - before == 2
    assert {line["severity"] for line in reports} == {"WARNING"}
    structlog.reset_defaults()


def test_a_closed_pipe_is_no_error_and_later_writes_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as target:
        monkeypatch.setattr(sys, "stderr", target)
        before = dropped_lines()
        with background_output():
            sys.stderr.write("hello\n")
        assert sys.stderr is not target
        sys.stderr.write("after the end\n")
        assert dropped_lines() == before + 1


def test_a_descriptor_that_does_not_block_loses_nothing() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with open(writing, "w", encoding="utf-8") as target:
        stream = BackgroundStream(target)
        for _ in range(500):
            stream.write("x" * 999 + "\n")
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(read_all(reading)))
        reader.start()
        assert stream.close_within(10)
    reader.join()
    os.close(reading)
    assert len(got[0]) == 500_000


def test_text_without_a_line_end_is_written_at_the_end() -> None:
    reading, writing = os.pipe()
    with open(writing, "w", encoding="utf-8") as target:
        stream = BackgroundStream(target)
        stream.write("no line end")
        assert stream.close_within(10)
        assert os.read(reading, 100) == b"no line end"
    os.close(reading)


def test_a_stream_without_a_descriptor_is_written_to_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    with background_output():
        sys.stdout.write("out\n")
        sys.stderr.write("err\n")
    assert capsys.readouterr() == ("out\n", "err\n")


def test_no_thread_is_started_for_a_stream_without_writes(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    with background_output():
        assert threading.active_count() == before
        sys.stderr.write("err\n")
    assert threading.active_count() == before


def no_thread(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_without_a_thread_a_line_is_written_by_its_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with open(writing, "w", encoding="utf-8") as target:
        stream = BackgroundStream(target)
        monkeypatch.setattr(threading.Thread, "start", no_thread)
        stream.write("one\ntwo\nthree")
        assert os.read(reading, 100) == b"one\ntwo\n"
        assert stream.close_within(10)
        assert os.read(reading, 100) == b"three"
    os.close(reading)


def test_without_a_thread_no_writer_waits_for_a_reader_and_a_later_thread_writes_what_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, writing = os.pipe()
    fill(writing)
    with open(writing, "w", encoding="utf-8") as target:
        stream = BackgroundStream(target)
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", no_thread)
            stream.write("one\n")
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(read_all(reading)))
        reader.start()
        stream.write("two\n")
        assert stream.close_within(10)
    reader.join()
    os.close(reading)
    assert got[0].lstrip(bytes(1)) == b"one\ntwo\n"


def test_without_a_thread_the_end_waits_for_a_stopped_reader_no_longer_than_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, writing = os.pipe()
    fill(writing)
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with open(writing, "w", encoding="utf-8") as target:
        stream = BackgroundStream(target)
        stream.write("one\n")
        assert not stream.close_within(0.01)
    os.close(reading)


def test_a_write_from_a_destructor_does_not_deadlock(capsys: pytest.CaptureFixture[str]) -> None:
    class Noisy:
        def __del__(self) -> None:
            sys.stderr.write("gone\n")

    with background_output():
        stream = sys.stderr
        assert isinstance(stream, BackgroundStream)
        with stream._lock:
            del_me = Noisy()
            del del_me
    assert capsys.readouterr().err == "gone\n"
