"""The systemd unit starts the sidecar with valid settings, lets it drain, and restricts it."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.downstream.inherited import ADMIN_NAME
from tests.shipping.commands import REPOSITORY, settings

FOLDER = REPOSITORY / "config/systemd"
UNIT = FOLDER / "cloudrun-sidecar.service"
LINES = UNIT.read_text().replace("\\\n", "").splitlines()
SIDECAR = "/opt/cloudrun-sidecar/bin/cloudrun-sidecar"
MAX_EXPOSURE = 1.5
"""Limit of the exposure, of 10; `systemd-analyze security` rates up to 2 as OK, and a plain service as 9.6."""


def value(name: str) -> str:
    (found,) = [line.removeprefix(f"{name}=") for line in LINES if line.startswith(f"{name}=")]
    return found


def systemd_analyze(*arguments: str | Path) -> str:
    program = shutil.which("systemd-analyze")
    assert program, "systemd-analyze is not installed: `make test` installs it (Debian: systemd)"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def with_a_program(unit: Path, text: str) -> Path:
    """Write the unit with an existing program instead of the sidecar's."""
    unit.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={shutil.which('true')}", text, flags=re.MULTILINE))
    return unit


def test_the_unit_is_valid_for_systemd(tmp_path: Path) -> None:
    assert systemd_analyze("verify", with_a_program(tmp_path / UNIT.name, UNIT.read_text())) == ""


def test_the_sockets_are_valid_for_systemd(tmp_path: Path) -> None:
    with_a_program(tmp_path / UNIT.name, UNIT.read_text())
    for unit in FOLDER.glob("*.socket"):
        shutil.copy(unit, tmp_path)
    assert systemd_analyze("verify", *sorted(tmp_path.iterdir())) == ""


def test_the_sockets_are_those_of_the_service_at_the_default_addresses() -> None:
    sockets = {}
    for name in value("Sockets").split():
        unit = dict(line.split("=", 1) for line in (FOLDER / name).read_text().splitlines() if re.match(r"\w+=", line))
        assert unit.get("Service", UNIT.name) == UNIT.name
        sockets[unit["FileDescriptorName"]] = unit["ListenStream"]
    defaults = settings(["serve", "--upstream", "https://a.run.app"])
    assert sockets == {"listen": defaults["listen"][0], ADMIN_NAME: defaults["admin"]}
    assert value("Also") == value("Sockets")
    assert {unit.name for unit in FOLDER.glob("*.socket")} == set(value("Sockets").split())


@pytest.mark.parametrize(
    ("settings_file", "status"), [("[routes.a]\nurl = 'https://a.run.app'\n", 0), ("nonsense = 1\n", 2)]
)
def test_a_reload_needs_only_sidecar_and_shell_and_fails_with_wrong_settings(
    tmp_path: Path, settings_file: str, status: int
) -> None:
    file = tmp_path / "routes.toml"
    file.write_text(settings_file)
    program, option, command = shlex.split(value("ExecReload"))
    assert (program, option) == ("/bin/sh", "-c")
    checked, _, _ = command.partition(" --print-config")
    assert checked.split() == value("ExecStart").split()
    command = command.replace(SIDECAR, f"{sys.executable} -m proxy").replace(value("AssertPathExists"), str(file))
    # Who started the tests may ignore SIGHUP, as nohup does, and a process would inherit that.
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); print(flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as service:
        assert service.stdout is not None
        service.stdout.readline()
        environment = {"PATH": "/nonexistent", "MAINPID": str(service.pid)}
        done = subprocess.run([program, option, command], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (status, "")
        assert ("nonsense: is not a setting" in done.stderr) == bool(status)
        if status:
            service.terminate()
        assert service.wait() == -(signal.SIGTERM if status else signal.SIGHUP)


def test_no_core_file_has_tokens_in_it() -> None:
    assert value("LimitCORE") == "0"


def test_the_memory_limit_allows_the_queued_octets_of_two_workers() -> None:
    assert value("MemoryMax") == "1G"
    queued = settings(["serve", "--upstream", "https://a.run.app"])["queued_octets"]
    assert 2 * (1.25 * queued + (64 << 20)) <= 1 << 30


def test_the_service_outlives_a_worker_that_the_kernel_ends_for_want_of_memory() -> None:
    assert value("OOMPolicy") == "continue"


def test_systemd_finds_a_mistake(tmp_path: Path) -> None:
    text = UNIT.read_text().replace("NoNewPrivileges=yes", "NoNewPriviliges=yes")
    assert "NoNewPriviliges" in systemd_analyze("verify", with_a_program(tmp_path / UNIT.name, text))


def test_the_exposure_of_the_unit_is_low() -> None:
    result = systemd_analyze("security", "--offline=true", "--no-pager", UNIT)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", result)
    assert found
    assert float(found[1]) <= MAX_EXPOSURE, result


def test_the_settings_are_valid_and_the_sidecar_can_drain_before_it_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "routes.toml"
    shutil.copy(REPOSITORY / "config/routes.example.toml", file)
    program, *words = shlex.split(value("ExecStart"))
    assert program == SIDECAR
    result = settings([str(file) if word == value("AssertPathExists") else word for word in words])
    assert "greeter" in result["routes"]
    assert int(value("TimeoutStopSec")) > result["drain_timeout"]


def test_the_variable_in_the_units_comment_exists() -> None:
    shown = re.findall(r"CLOUDRUN_SIDECAR_\w+=\S+", UNIT.read_text())
    assert shown
    result = settings(["serve", "--upstream", "https://a.run.app"], dict([shown[0].split("=", 1)]))
    assert result["log_level"] == "debug"


def test_a_start_with_wrong_settings_is_not_repeated(tmp_path: Path) -> None:
    file = tmp_path / "routes.toml"
    file.write_text("nonsense = 1")
    with pytest.raises(AssertionError, match="nonsense"):
        settings(["serve", "--config", str(file)])
    done = subprocess.run([sys.executable, "-m", "proxy", "serve", "--config", file], capture_output=True, check=False)
    assert done.returncode == int(value("RestartPreventExitStatus"))


@pytest.mark.parametrize(("status", "closed"), [("2", True), ("1", False), ("0", False), ("KILL", False)])
def test_wrong_settings_close_the_sockets_that_would_start_the_service_again(
    tmp_path: Path, status: str, closed: bool
) -> None:
    program, option, command = shlex.split(value("ExecStopPost").removeprefix("-+").replace("%N", UNIT.stem))
    told = tmp_path / "told"
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{told}\n')
    systemctl.chmod(0o755)
    environment = {"PATH": str(tmp_path), "EXIT_STATUS": status}
    subprocess.run([program, option, command], env=environment, cwd=FOLDER, check=True)
    assert told.exists() == closed
    if closed:
        assert told.read_text().split() == ["stop", "--no-block", *value("Sockets").split()]
