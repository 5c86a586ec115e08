"""The supervisor of several worker processes: accepts connections and sends them to the workers.

If several processes listen on one socket, the one that wakes up first accepts most connections: one of two workers may
get all of sixteen. So only the supervisor listens. It accepts, and sends each connection to the worker with the fewest
(`accepting`, and `downstream/handover`). When the supervisor exits, its ports are free.

* The first SIGTERM, SIGINT or SIGQUIT to the supervisor drains every worker, the second aborts what is still live.
* SIGHUP to the supervisor reloads the settings of all workers (`reloading`).
* A signal to a worker only drains it, even if repeated: Ctrl-C in a terminal reaches supervisor and workers at once,
  and service managers signal whole process groups.
* If a worker exits without a command, another one takes its place (`replacing`), and the others go on. Only if one
  exits while the first ones start, or cannot be started, the others drain, and the exit code is not 0.
* If another one is not ready within a minute, it is killed, and the next one is started.
* If another one cannot be started (no descriptors, processes or memory), the others go on, and it is tried again.
* A worker gets connections once it is ready. Until all of the first ones are, connections wait in the kernel's queue.
* If a worker is still running when its time is over, it is killed, and the exit code is not 0.
* A worker that replaces another one, and ends before it is ready, changes no exit code.
* If the supervisor dies, its workers drain and exit.
"""

from __future__ import annotations

import contextlib
import math
import selectors
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from proxy import __version__
from proxy.downstream.binding import ListenFailed
from proxy.downstream.channel import ABORT, DRAIN, HAND_ON, LAST, Channel
from proxy.downstream.config import ListenerConfig, Sockets
from proxy.downstream.inherited import InheritedSockets
from proxy.exit_codes import PROCESSES_REMEDY, ExitCode
from proxy.network.service_manager import ServiceManager
from proxy.signals import ENDING_SIGNALS, RELOAD_SIGNAL
from proxy.supervisor.accepting import Accepting
from proxy.supervisor.collecting import Collecting
from proxy.supervisor.installed import other_version
from proxy.supervisor.process import WorkerProcess
from proxy.supervisor.reloading import Reloading
from proxy.supervisor.replacing import Replacing
from proxy.supervisor.signals import blocked_for_workers, signals_to_socket
from proxy.supervisor.watchdog import Watchdog

if TYPE_CHECKING:
    from proxy.downstream.takeover import Takeover

__all__ = ["run_workers"]

_log: Final = structlog.get_logger("supervisor")

_ABORT_SECONDS: Final = 5.0
"""Time for workers to exit once they must abort what is live."""

_SILENCE_SECONDS: Final = 60.0
"""How long a worker may report nothing, if the service manager sets no time; Restate gives up a silent connection then.
"""

_NOT_STARTED_REMEDY: Final = f"{PROCESSES_REMEDY} or of open files (ulimit -n), or free memory"

_NOT_INHERITED: Final = InheritedSockets()


def run_workers(
    config: ListenerConfig,
    work: Callable[[ListenerConfig, Channel], None],
    *,
    drain_seconds: float,
    reloading: Reloading | None = None,
    inherited: InheritedSockets = _NOT_INHERITED,
    manager: ServiceManager | None = None,
    takeover: Takeover | None = None,
) -> ExitCode:
    """Run `config.workers` processes of `work(config, channel)` until the last one has exited.

    `work` is pickled by name, and starts with `HANDLED_SIGNALS` blocked. A worker that still runs some seconds after
    `drain_seconds`, which a reload may change, is killed. Without `reloading`, settings stay as they are. `inherited`
    sockets replace those of `config`. `manager` is told when all workers are ready, and when they drain. A worker whose
    event loop stands still, for as long as that allows or for a minute, is killed and replaced. With `takeover`,
    sockets are taken over once all workers are ready, and handed on.

    Returns OK after an orderly end, SETTINGS_UNUSABLE if the first worker that failed exited with it, else FAILED.
    Raises ListenFailed.

    When this returns or raises, `HANDLED_SIGNALS` are ignored: the process is about to exit.
    """
    with signals_to_socket() as signals:
        sockets = config.create_sockets(inherited.listeners, takeover)
        try:
            supervisor = _Supervisor(sockets, signals, drain_seconds, config, work, reloading)
            supervisor.admin = inherited.admin
            supervisor.manager = manager or ServiceManager({})
            supervisor.takeover = takeover
            if reloading is not None:
                reloading.start()
            return supervisor.run()
        finally:
            config.release(sockets, remove_files=takeover is None or takeover.owns_files)
            if inherited.admin is not None:
                inherited.admin.close()


class _Supervisor:
    """Accepts connections for its workers until the last of them has exited."""

    def __init__(
        self,
        sockets: Sockets,
        signals: socket.socket,
        drain_seconds: float,
        config: ListenerConfig,
        work: Callable[[ListenerConfig, Channel], None],
        reloading: Reloading | None,
    ) -> None:
        self.admin: socket.socket | None = None
        """The listening socket of the admin port, if there is one for all workers."""
        self.manager = ServiceManager({})
        """The service manager that is told what happens."""
        self.takeover: Takeover | None = None
        """The sockets between the sidecar before this one and the one after it."""
        self._config = config
        self._work = work
        self._listening = sockets.insecure_sockets
        self._signals = signals
        self._drain_seconds = drain_seconds
        self._workers: list[WorkerProcess] = []
        self._selector = selectors.DefaultSelector()
        self._accepting = Accepting(
            self._listening,
            config.tls_descriptors,
            self._selector,
            self._workers,
            self._may_accept,
            self._read_reports,
        )
        self._all_ready = False
        self._watchdog = Watchdog()
        self._replacing = Replacing(self._workers)
        self._command: bytes | None = None
        self._kill_at = math.inf
        self._exit_code = ExitCode.OK
        self._reloading = reloading
        self._collecting = Collecting()
        if reloading is not None:
            self._collecting.settings = reloading.state
            self._collecting.keep(reloading.settings)
        self._selector.register(signals, selectors.EVENT_READ, None)  # `run` reads it after every select
        if reloading is not None:
            self._selector.register(reloading.socket, selectors.EVENT_READ, partial(self._reload, reloading))

    def run(self) -> ExitCode:
        """Start the workers, and serve until the last one has exited; return the exit code."""
        self._start_workers(self._config.workers)
        while self._workers or self._replacing.starts.next < math.inf:
            now = time.monotonic()
            if (count := self._replacing.starts.take_due(now)) > 0:
                self._start_workers(count)
            self._accepting.update(now)
            due = min(self._kill_at, self._replacing.starts.next, self._watchdog.due, self._collecting.due)
            due = min(due, self._accepting.due(now), self._replacing.due if self._replaces else math.inf)
            if self._reloading is not None:
                due = min(due, self._reloading.due)
            events = self._selector.select(None if due == math.inf else max(0.0, due - now))
            # Before other events: if the whole group was signalled, a worker may have exited already.
            self._handle_signals()
            for key, _ in events:
                if key.data is not None:
                    key.data()
            if self._reloading is not None:
                self._reloading.check([worker.channel for worker in self._workers])
            self._collecting.check(self._workers)
            if self._command != HAND_ON:  # requests are taken then, until all clients have left
                self._collecting.tell_readiness(self._workers, started=self._all_ready)
            self._accepting.hand_over_waiting()
            for worker in self._workers:
                self._update_registration(worker)
            now = time.monotonic()
            if now >= self._watchdog.due:
                self._watch(now)
            if self._replaces:
                self._replacing.check(now)
            if now >= self._kill_at:
                self._kill()
        self._accepting.close()
        return self._exit_code

    @property
    def _replaces(self) -> bool:
        """Whether workers are replaced; nobody waits for the first ones but their user."""
        return self._all_ready and self._command is None

    def _start_workers(self, count: int) -> None:
        if self._all_ready and (installed := other_version()):
            what = "the worker that starts is of another version, and may fail: the package was replaced meanwhile"
            _log.error(what, running=__version__, installed=installed, remedy="restart the sidecar")
        with blocked_for_workers():
            for _ in range(count):
                try:
                    self._start_worker()
                except OSError as exc:  # EMFILE, EAGAIN, ENOMEM
                    said = {"reason": exc.strerror, "remedy": _NOT_STARTED_REMEDY}
                    if not self._all_ready:
                        _log.error("worker could not be started: draining the others", **said)
                        self._exit_code = ExitCode.FAILED
                        self._end(DRAIN)
                        return
                    delay = self._replacing.plan(0.0)
                    _log.error("worker could not be started: trying again", **said, after_seconds=delay)

    def _start_worker(self) -> None:
        """Start one worker. `HANDLED_SIGNALS` must be blocked."""
        worker = WorkerProcess.start(
            self._work,
            self._config,
            self._listening,
            admin=self.admin,
            heartbeat_seconds=self._silence_seconds / 4,
            replacing=self.takeover is not None and self.takeover.replacing,
        )
        self._workers.append(worker)
        self._selector.register(worker.process.sentinel, selectors.EVENT_READ, partial(self._on_exit, worker))
        self._selector.register(worker.channel.socket, selectors.EVENT_READ, partial(self._on_channel_ready, worker))

    def _note_ready(self) -> None:
        """Tell the service manager once all of the first workers are ready."""
        if self._all_ready or not all(worker.channel.ready for worker in self._workers):
            return
        self._all_ready = True
        if self.takeover is not None:
            try:
                self.takeover.complete()
            except ListenFailed as exc:
                _log.error("draining", reason=str(exc))
                self._exit_code = ExitCode.FAILED
                self._end(DRAIN)
                return
            self.takeover.start(self._watch_socket, self._selector.unregister, self._hand_on)
        self.manager.ready("serving")
        self.manager.alive()
        self._watchdog.start(time.monotonic(), self._silence_seconds)

    @property
    def _silence_seconds(self) -> float:
        return self.manager.watchdog_seconds or _SILENCE_SECONDS

    def _watch_socket(self, watched: socket.socket, call: Callable[[], None]) -> None:
        self._selector.register(watched, selectors.EVENT_READ, call)

    def _watch(self, now: float) -> None:
        """Tell the service manager that we live; kill each worker that has reported nothing, if it is time to judge."""
        if self._watchdog.look(now):
            self._read_reports()
            for worker in self._workers:
                if worker.channel.ready and not worker.channel.alive:
                    _log.error("worker's event loop stands still: killing it", pid=worker.process.pid)
                    worker.kill()
                worker.channel.alive = False
        self.manager.alive()

    # ---- connections

    def _may_accept(self) -> bool:
        """Return True if connections may be taken from the kernel's queue.

        Until all of the first workers have started, they wait: the first to start would get all of them. While all
        drain, they wait if another process will have the same sockets.
        """
        return self._all_ready if self._command is None else not self._config.shared

    def _is_last(self, leaving: WorkerProcess) -> bool:
        """Return True if all workers end, this one is the last to leave, and no other process will listen."""
        if self._command is None or self._config.shared:
            return False
        return all(other is leaving or other.channel.leaving or other.channel.gone for other in self._workers)

    def _read_reports(self) -> None:
        for worker in self._workers:
            self._on_channel_ready(worker)

    def _on_channel_ready(self, worker: WorkerProcess) -> None:
        if worker.channel.gone:  # closed since select returned
            return
        was_leaving = worker.channel.leaving
        worker.channel.read_reports()
        if worker.channel.leaving and not was_leaving:
            if self._is_last(worker):
                self._accepting.stop(worker)
            worker.channel.send_command(LAST)
        worker.channel.flush()
        self._update_registration(worker)
        self._note_ready()

    def _update_registration(self, worker: WorkerProcess) -> None:
        """Register the channel for the events that it needs; close it if the worker has exited."""
        channel = worker.channel
        if not channel.gone:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.has_unsent else 0)
            if self._selector.get_key(channel.socket).events != events:
                self._selector.modify(channel.socket, events, partial(self._on_channel_ready, worker))
        elif channel.socket.fileno() >= 0:
            self._selector.unregister(channel.socket)
            for connection, tls in channel.close():
                self._accepting.hand_over(
                    connection, tls=tls
                )  # nothing was read from it: any other worker can serve it

    # ---- signals

    def _handle_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in self._signals.recv(64):
                if number in ENDING_SIGNALS:
                    self._end(ABORT if self._command in (DRAIN, ABORT) else DRAIN)
                elif number == RELOAD_SIGNAL and self._reloading is not None:
                    self._reloading.request()

    def _reload(self, reloading: Reloading) -> None:
        """Send the workers what was read."""
        draining = self._command not in (None, HAND_ON)  # after a takeover, requests are taken until clients have left
        reloading.take([worker.channel for worker in self._workers], draining=draining)
        self._drain_seconds = reloading.settings.drain_timeout
        self._collecting.keep(reloading.settings)

    def _hand_on(self) -> None:
        """Leave new connections to the sidecar that has the sockets, too, now."""
        self._config.shared = True
        self._end(HAND_ON)

    def _end(self, command: bytes) -> None:
        """Send all workers the command to end, and set the time at which those that still run are killed."""
        self._command = command
        self._accepting.draining = True
        self._replacing.starts.clear()
        self.manager.stopping("draining")
        seconds = _ABORT_SECONDS + (0.0 if command == ABORT else self._drain_seconds)
        self._kill_at = min(self._kill_at, time.monotonic() + seconds)
        for worker in self._workers:
            if not worker.channel.gone:
                worker.channel.send_command(command)
                self._update_registration(worker)

    def _on_exit(self, worker: WorkerProcess) -> None:
        """Replace a worker that has exited without a command, or drain the others if the first ones still start."""
        while worker.channel.read_reports():  # it may have been ready before
            pass
        self._read_reports()  # and the others are, perhaps
        self._note_ready()
        self._selector.unregister(worker.process.sentinel)
        self._workers.remove(worker)
        self._collecting.retire(worker.channel)
        worker.channel.gone = True
        self._update_registration(worker)
        worker.process.join()  # reap it
        code = worker.process.exitcode or 0
        said = {"pid": worker.process.pid, **worker.exit_reason()}
        if self._replaces:
            self._collecting.restarts += 1
            self._replacing.replace(worker)
            return
        if self._command is None:
            _log.error("worker failed: draining the others", **said)
        elif code:
            _log.error("worker failed while draining", **said)
        # What fails may be started again: it would take the sockets back from the sidecar that has taken them over.
        handed_on = self.takeover is not None and self.takeover.handed_on
        # A replacement that was not ready yet has served nothing.
        spare = self._all_ready and not worker.channel.ready
        if (self._command is None or (code and not spare)) and not handed_on:
            failure = ExitCode.SETTINGS_UNUSABLE if code == ExitCode.SETTINGS_UNUSABLE else ExitCode.FAILED
            self._exit_code = self._exit_code or failure
        if self._command is None:
            self._end(DRAIN)

    def _kill(self) -> None:
        self._kill_at = math.inf
        for worker in self._workers:
            _log.error("worker still running after its time to drain: killing it", pid=worker.process.pid)
            worker.kill()
