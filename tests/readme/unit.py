"""`unshare --net python -m tests.readme.unit FILE`: start a unit as systemd would, check that it is ready, and stop it.

As far as it goes without systemd itself: the program and its words, the sockets of its .socket units, the notification
that it is ready, a user of its own without rights, the variables, the number of files, a file system that is read-only,
homes that are empty, a /tmp of its own. What is left to systemd is its filter of system calls, its limits of memory and
tasks, and when to start again.
"""

from __future__ import annotations

import asyncio
import resource
import shlex
import socket
import sys
from collections import defaultdict
from pathlib import Path
from typing import Final, TypeAlias

import click

from tests.readme.surroundings import loopback_up
from tests.shipping.steps import Wrong, check
from tests.support.processes import ProgramFailed, program

__all__ = ["main"]

Unit: TypeAlias = dict[str, list[str]]
"""The values of each setting, in the order of the file."""

DYNAMIC_USER: Final = 64_999
"""A user id from systemd's range for `DynamicUser=yes`, 61184 to 65519."""
NOTIFY_SOCKET: Final = "cloudrun-sidecar-notify"
"""Name of an abstract socket."""
UNITS: Final = Path("/etc/systemd/system")
READY: Final = "http://127.0.0.1:9091/readyz"
NO_RIGHTS: Final = ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs", "--clear-groups"]
# The file systems of the kernel stay as they are.
FILE_SYSTEM: Final = """\
set -e
while read -r _ _ _ _ point _; do
    case $point in /proc|/proc/*|/sys|/sys/*|/dev|/dev/*) ;; *) mount -o remount,bind,ro "$point" ;; esac
done < /proc/self/mountinfo
for home in /home /root /run/user; do [ ! -d $home ] || mount -t tmpfs -o ro,mode=755 tmpfs $home; done
for own in /tmp /var/tmp; do mount -t tmpfs -o mode=1777 tmpfs $own; done
cd /
umask "$1"; shift
exec "$@"
"""


def read(file: Path) -> Unit:
    """Return the settings of a unit file, all sections together."""
    unit: Unit = defaultdict(list)
    for line in file.read_text().splitlines():
        if "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            unit[name].append(value)
    return unit


def environment(unit: Unit) -> dict[str, str]:
    """Return the environment variables of the program."""
    lines = list(unit["Environment"])
    for file in unit["EnvironmentFile"]:
        path = Path(file.removeprefix("-"))
        check(file.startswith("-") or path.exists(), f"there is no {path}")
        lines += path.read_text().splitlines() if path.exists() else []
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


async def started(unit: Unit) -> None:
    """Start the unit, and stop it when it is ready; raises Wrong or ProgramFailed."""
    hardening = ("Type", "DynamicUser", "NoNewPrivileges", "ProtectSystem", "ProtectHome", "PrivateTmp")
    values = [unit[name][-1] for name in hardening]
    check(
        values == ["notify", "yes", "yes", "strict", "yes", "yes"], f"what is done here is not what is said: {values}"
    )
    (command,) = unit["ExecStart"]
    # Only systemd may raise these limits.
    files = min(int(unit["LimitNOFILE"][-1]), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    argv = ["unshare", "--mount", "sh", "-c", FILE_SYSTEM, "sh", unit["UMask"][-1]]
    argv += [
        "prlimit",
        f"--nofile={files}",
        "setpriv",
        f"--reuid={DYNAMIC_USER}",
        f"--regid={DYNAMIC_USER}",
        *NO_RIGHTS,
    ]
    variables = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"} | environment(unit)
    variables |= {"NOTIFY_SOCKET": f"@{NOTIFY_SOCKET}"}
    argv += ["env", "--ignore-environment", *(f"{name}={value}" for name, value in variables.items())]
    argv += ["systemd-socket-activate", *(f"--setenv={name}" for name in variables), *listening(unit["Sockets"][-1])]
    grace = float(unit["TimeoutStopSec"][-1])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{NOTIFY_SOCKET}")
        manager.setblocking(False)
        async with program("the unit", [*argv, *shlex.split(command)], stop_seconds=grace) as child:
            await child.answers(READY)
            said = await asyncio.get_running_loop().sock_recv(manager, 4096)
            check(b"READY=1" in said.split(b"\n"), f"it told systemd {said!r}")
            held_to(child.pid)
            status = await child.stop(within_seconds=grace)
            check(status == 0, f"it ended with {status}:\n{child.tail()}")


def listening(units: str) -> list[str]:
    """Return the options of `systemd-socket-activate` for the sockets of these units."""
    sockets = [read(UNITS / name) for name in units.split()]
    names = ":".join(each["FileDescriptorName"][-1] for each in sockets)
    return [*(f"--listen={each['ListenStream'][-1]}" for each in sockets), f"--fdname={names}"]


def held_to(pid: int) -> None:
    """Check the user of the process, that it has no capabilities, and that it can write to its own /tmp only."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    check(set(status["Uid"].split()) == {str(DYNAMIC_USER)}, f"it runs as {status['Uid']}")
    check(int(status["CapBnd"], 16) == 0 and status["NoNewPrivs"] == "1", f"it may gain {status['CapBnd']}")
    points = {line.split()[4]: line.split()[5] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()}
    kernels = ("/proc", "/sys", "/dev")
    open_ones = {point for point, how in points.items() if "rw" in how.split(",") and not point.startswith(kernels)}
    check(open_ones == {"/tmp", "/var/tmp"}, f"it may write to {sorted(open_ones)}")


def main() -> int:
    """Return 0 if the unit started and ended in order; otherwise print the problem and return 1."""
    loopback_up()
    try:
        unit = read(Path(sys.argv[1]))
        for path in unit["AssertPathExists"]:
            check(Path(path).exists(), f"there is no {path}")
        asyncio.run(started(unit))
    except (ProgramFailed, Wrong) as exc:
        click.echo(exc, err=True)
        return 1
    click.echo("was ready, and ended in order")
    return 0


if __name__ == "__main__":
    sys.exit(main())
