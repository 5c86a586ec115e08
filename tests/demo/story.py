"""The steps of the demo, and the commands to try after it."""

from __future__ import annotations

import json
import ssl
import time
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import click

from tests.demo.service import SEEN
from tests.demo.stage import Ports, Stage, emulated_google, greeter_sidecar
from tests.support.processes import Program
from tests.support.restate_server import RestateServer

__all__ = ["StepFailed", "next_commands", "set_up", "show"]

APP_CREDENTIAL = "Bearer what-the-application-itself-expects"
SEEN_SECONDS = 30.0


class StepFailed(Exception):
    """A step failed; the text says why, and the output of `program` has details."""

    def __init__(self, reason: str, program: Program) -> None:
        super().__init__(reason)
        self.program = program


async def set_up(stack: AsyncExitStack, folder: Path, ports: Ports) -> Stage:
    """Start everything, in order; `stack` ends it in reverse order."""
    heading("Starting")
    began = time.monotonic()
    emulator, places = await stack.enter_async_context(emulated_google(folder, ports, "tests.demo.service:app"))
    done("Google and a private Cloud Run service (emulated)", places["cloud_run"], began)
    began = time.monotonic()
    running = await stack.enter_async_context(greeter_sidecar(folder, ports, places))
    done("cloudrun-sidecar", running.url, began)
    began = time.monotonic()
    data = folder / "restate"
    data.mkdir()
    server = await stack.enter_async_context(
        RestateServer.running(
            data, admin_port=ports.restate_admin, ingress_port=ports.ingress, log=folder / "restate.log"
        )
    )
    done("restate-server", server.ingress_url, began)
    return Stage(
        emulator=emulator,
        places=places,
        sidecar=running,
        restate=server,
    )


async def show(stage: Stage) -> None:
    """Play the demo; raises StepFailed."""
    heading("1  The Cloud Run service is private")
    fact(f"GET {stage.places['cloud_run']}/discover without a token", f"→ {await unsigned_call(stage)}")

    heading("2  Restate registers it through the sidecar")
    fact(f"register {stage.deployment_url}", f"→ {', '.join(await register(stage))}")

    heading("3  Restate invokes it")
    answer = await invoke(stage)
    fact(f"POST {stage.restate.ingress_url}/Greeter/Ada/greet", "→ 200")
    for line in json.dumps(answer, indent=2, ensure_ascii=False).splitlines():
        click.echo(f"     {line}")

    heading("4  What the container saw")
    seen = await last_seen(stage)
    fact("x-serverless-authorization", f"a token for {seen['claims']['aud']}")
    expires = datetime.fromtimestamp(seen["claims"]["exp"]).astimezone()
    for name, value in {**seen["claims"], "exp": expires.isoformat(" ", "minutes")}.items():
        if name in ("iss", "aud", "email", "exp"):
            click.echo(f"     {name:<6} {value}")
    click.echo("     signature removed by Cloud Run's front end, which has verified it")
    fact("authorization", f"{seen['authorization'][0]!r}, as Restate sent it")


async def unsigned_call(stage: Stage) -> str:
    """Call the Cloud Run service without a token; return the refusal."""
    trust = ssl.create_default_context(cafile=stage.places["ca_file"])
    async with stage.restate.http.get(f"{stage.places['cloud_run']}/discover", ssl=trust) as response:
        if response.status != 403:
            raise StepFailed(f"the service answered {response.status} to a call without a token", stage.emulator)
        return "403 Forbidden"


async def register(stage: Stage) -> list[str]:
    """Register the service with Restate; return the names of the discovered services."""
    answer = await stage.restate.register(stage.deployment_url, headers={"authorization": APP_CREDENTIAL})
    if answer.status != 201:
        raise StepFailed(f"the registration gave {answer.status}: {answer.body.get('message')}", stage.sidecar.program)
    return answer.services


async def invoke(stage: Stage) -> Any:
    """Invoke the handler through Restate; return its result."""
    try:
        answer = await stage.restate.invoke("Greeter", "greet", key="Ada")
    except (TimeoutError, aiohttp.ClientError) as exc:
        raise StepFailed(
            f"no answer to the invocation: {str(exc) or type(exc).__name__}", stage.sidecar.program
        ) from exc
    if answer.status != 200:
        raise StepFailed(f"the invocation gave {answer.status}: {answer.value}", stage.sidecar.program)
    return answer.value


async def last_seen(stage: Stage) -> dict[str, Any]:
    """Return the container's log line of the invocation."""
    line = await stage.emulator.line(rf"^{SEEN}(.*/invoke/Greeter/greet.*)$", within_seconds=SEEN_SECONDS)
    seen: dict[str, Any] = json.loads(line[1])
    if seen["authorization"] != [APP_CREDENTIAL] or not seen["signature_removed"] or seen["tokens"] != 1:
        raise StepFailed(
            "the container did not see one verified token and Restate's own authorization", stage.sidecar.program
        )
    return seen


def next_commands(stage: Stage) -> list[tuple[str, str]]:
    """Return commands to try, each with its purpose."""
    is_json = "-H 'content-type: application/json'"
    again = json.dumps({"uri": stage.deployment_url, "force": True})
    fault = json.dumps({"endpoint": "metadata", "fault": "server-error"})
    mended = json.dumps({"endpoint": "metadata", "fault": None})
    faults = f"{stage.places['control']}/faults"
    ca_file, cloud_run = stage.places["ca_file"], stage.places["cloud_run"]
    register_again = f"curl -sS {stage.restate.admin_url}/deployments {is_json} -d '{again}'"
    return [
        ("call it again", f"curl -sS -X POST {stage.restate.ingress_url}/Greeter/Ada/greet"),
        (
            "call Cloud Run without the sidecar",
            rf"curl -sS -o /dev/null -w '%{{http_code}}\n' --cacert {ca_file} {cloud_run}/discover",
        ),
        ("break Google's metadata server", f"curl -sS {faults} {is_json} -d '{fault}'"),
        ("register again, and read the sidecar's reason", register_again),
        ("mend it", f"curl -sS {faults} {is_json} -d '{mended}'"),
        ("what Google saw", f"curl -sS {stage.places['control']}/state"),
        ("is the sidecar ready?", f"curl -sS http://{stage.sidecar.admin}/readyz"),
    ]


def show_next(stage: Stage, folder: Path) -> None:
    """Print the addresses, and the commands to try."""
    heading("Where everything listens")
    for name, url in (
        ("Restate's ingress", stage.restate.ingress_url),
        ("Restate's admin API and UI", f"{stage.restate.admin_url}/ui/"),
        ("the sidecar", stage.sidecar.url),
        ("the sidecar's admin plane", f"http://{stage.sidecar.admin}"),
        ("Cloud Run (emulated)", stage.places["cloud_run"]),
        ("metadata server (emulated)", f"http://{stage.places['metadata']}"),
        ("logs", str(folder)),
    ):
        click.echo(f"   {name:<27} {url}")
    heading("Type next, in another terminal")
    for purpose, command in next_commands(stage):
        click.echo(f"   {click.style('# ' + purpose, dim=True)}\n   {command}")


def heading(text: str) -> None:
    """Print the title of a step."""
    click.echo(f"\n{click.style(text, bold=True)}")


def fact(what: str, outcome: str) -> None:
    """Print an action and its result."""
    click.echo(f"   {what}\n     {click.style(outcome, fg='green')}")


def done(what: str, where: str, began: float) -> None:
    """Print that a program is ready, and how long it took."""
    click.echo(f"   {click.style('✓', fg='green')} {what:<50} {where}   {time.monotonic() - began:.1f} s")
