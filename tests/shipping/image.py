"""`python -m tests.shipping.image`: build the images, run the compose file's services in them, serve a request.

Needs root and Debian's buildah and debootstrap, no registry and no container engine. What it makes, it removes.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import aiohttp
import click

from proxy.emulator import Certificates, CloudRun, CloudRunServer, Google, GoogleServer, echo
from proxy.emulator.certificates import write_secret
from tests.shipping.buildah import Builder, BuildFailed, Image, builder
from tests.shipping.containers import Container, Containers, isolated
from tests.shipping.steps import Wrong, check, step
from tests.support.compose import Mount, Service, load, start_order
from tests.support.processes import Program, ProgramFailed
from tests.support.restate_server import find_restate_server

REPOSITORY = Path(__file__).parents[2]
COMPOSE = REPOSITORY / "docker-compose.yml"
STARTED = ("restate", "sidecar", "google")
"""What `docker compose up` starts."""

URL = "https://greeter-123456789012.europe-west1.run.app"
INVOKER = "restate-invoker@my-project.iam.gserviceaccount.com"
DEVELOPER = "developer@example.com"


Plan: TypeAlias = dict[str, tuple[Image, Path]]
"""The image of each service, and the root of a container of it."""


# Outside: with a network, to build.


def build(suite: str) -> int:
    """Build everything, look at it, and go on inside; return the exit code."""
    with builder() as made:
        with step(f"debootstrap {suite}"):
            base = made.base(suite)
        with step("build the sidecar"):
            sidecar = made.build("localhost/cloudrun-sidecar", base, "sidecar", REPOSITORY)
        with step("build the sidecar with the sample service (dev)"):
            dev = made.build("localhost/cloudrun-sidecar:dev", base, "dev", REPOSITORY)
        with step("make an image like Restate's"):
            restate = made.restate("localhost/restate", base, find_restate_server().resolve())
        with step("look into the sidecar's image"):
            look(made, sidecar)
        images = {"sidecar": sidecar, "dev": dev, None: restate}
        services = load(COMPOSE, {"HOME": "/nonexistent"})
        plan: Plan = {
            name: (images[service.target], made.mounted(images[service.target])) for name, service in services.items()
        }
        file = made.folder / "plan"
        file.write_bytes(pickle.dumps(plan))
        return isolated("-m", "tests.shipping.image", "--inside", file)


def look(made: Builder, sidecar: Image) -> None:
    """Hold the image to what is promised of it."""
    check(sidecar.user == "65532:65532", f"the user is {sidecar.user}")
    check(sidecar.entrypoint == ("cloudrun-sidecar",), f"the entrypoint is {sidecar.entrypoint}")
    check(sidecar.health_command == ("cloudrun-sidecar", "healthcheck"), f"the check is {sidecar.health_command}")
    root = made.mounted(sidecar)
    tools = {"sh", "bash", "dash", "apt-get", "dpkg", "pip", "pip3", "perl", "gcc"}
    found = [
        str(path) for path in root.rglob("*") if path.name in tools and path.is_file() and os.access(path, os.X_OK)
    ]
    check(not found, f"there is {', '.join(found)}")
    privileged = [str(path) for path in root.rglob("*") if path.is_file() and path.stat().st_mode & 0o6000]
    check(not privileged, f"these change who runs them: {', '.join(privileged)}")
    octets = sum(path.lstat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    click.echo(f"     {octets >> 20} MiB, {len(list((root / 'var/lib/dpkg/status.d').iterdir()))} Debian packages")
    check(octets < 150 << 20, f"it has {octets >> 20} MiB")
    engine = "from proxy.http2.choice import engine_choice; print(engine_choice('auto').library)"
    library = made.run_inside(sidecar, "python3", "-c", engine)
    check(library.startswith("libnghttp2 "), f"the engine is {library}")


# Inside: without a network, to run.


class Stack:
    """The services of the compose file, started in order."""

    def __init__(self, folder: Path, plan: Plan, environment: dict[str, str]) -> None:
        self.services = load(COMPOSE, environment)
        self.folder = folder
        self._plan = plan
        self._containers = Containers(folder, self.services)

    def container(self, name: str, service: Service | None = None, **environment: str) -> Container:
        """Return a container of the service, or of what is given in its place."""
        image, root = self._plan[name]
        return self._containers.make(service or self.services[name], image, root, **environment)

    @asynccontextmanager
    async def up(self, container: Container) -> AsyncIterator[Program]:
        """Run a container; yields when it is healthy, and checks that it ends in order."""
        name = container.service.name
        async with container.running(self.folder / f"{name}.log") as child:
            await container.healthy(child)
            yield child
            status = await child.stop(within_seconds=container.service.stop_grace_seconds)
            check(status == 0, f"{name} ended with {status}:\n{child.tail()}")


async def dev_stack(stack: Stack) -> None:
    """What `docker compose up` and the commands in the file's head do."""
    async with AsyncExitStack() as running, aiohttp.ClientSession() as http:
        containers: dict[str, Container] = {}
        children: dict[str, Program] = {}
        for name in start_order(stack.services, *STARTED):
            with step(f"{name}: started and healthy"):
                containers[name] = stack.container(name)
                children[name] = await running.enter_async_context(stack.up(containers[name]))
        await register(stack)
        with step("POST /Greeter/Ada/greet through Restate, sidecar and Cloud Run"):
            # As curl does it, without a type where there is no content.
            call = http.post("http://127.0.0.1:8080/Greeter/Ada/greet", skip_auto_headers=["content-type"])
            async with call as response:
                answer = await response.text()
                check(response.status == 200 and "Hello, Ada!" in answer, f"{response.status} {answer}")
        with step("the token was minted by IAM Credentials, for the impersonated account"):
            seen = (await children["google"].line(r"^the container saw (.*/invoke/Greeter/greet.*)$"))[1]
            email = json.loads(seen)["claims"]["email"]
            check(email == "restate-invoker@emulated.iam.gserviceaccount.com", f"it is for {email}")
            async with http.get("http://127.0.0.1:80/emulator/state") as response:
                mints = (await response.json())["mints"]
            check(mints["iam"] == 2 and mints["metadata"] == 0, f"the mints are {mints}")
        with step("the compiled engine is in use, and nothing can be written"):
            await children["sidecar"].line(r'"engine": ?"libnghttp2 ')
            status, said = await containers["sidecar"].execute("python3", "-c", "open('/home/nonroot/x', 'w')")
            check(status == 1 and "Read-only file system" in said, said)
        with step("everything ends in order when it is told to"):
            await running.aclose()


async def register(stack: Stack) -> None:
    """What `docker compose run --rm register` does."""
    with step("register: Restate discovers the service through the sidecar"):
        container = stack.container("register")
        async with container.running(stack.folder / "register.log") as child:
            status = await child.ended(within_seconds=30)
        check(status == 0 and '"Greeter"' in child.tail(), f"it ended with {status}:\n{child.tail()}")


async def gcloud_profile(stack: Stack, folder: Path) -> None:
    """The profile `gcloud`: a developer's own credentials, impersonation, a Cloud Run service at its own address.

    What is real there is emulated by this process, on the ports of the real one.
    """
    google = Google()
    google.add_account(INVOKER)
    google.allow_impersonation(DEVELOPER, INVOKER)
    certificates = Certificates.create(folder / "google")
    credentials = folder / "home/.config/gcloud/application_default_credentials.json"
    write_secret(credentials, json.dumps(google.user_file(DEVELOPER)).encode())
    os.chown(credentials, 1000, 1000)
    cloud_run = CloudRun(echo, google, url=f"{URL}:8443", invokers=[INVOKER])
    service = stack.services["sidecar-gcloud"]
    trusting = replace(service, volumes=(*service.volumes, Mount(str(certificates.ca_file), "/ca.pem", True)))
    async with AsyncExitStack() as running, aiohttp.ClientSession() as http:
        await running.enter_async_context(GoogleServer(google, certificates, metadata_port=80, tls_port=443))
        await running.enter_async_context(
            CloudRunServer(cloud_run, certificates, port=8443, names=(URL.removeprefix("https://"),))
        )
        with step("sidecar-gcloud: started and healthy"):
            container = stack.container("sidecar-gcloud", trusting, SSL_CERT_FILE="/ca.pem")
            await running.enter_async_context(stack.up(container))
        with step("a request with a token that the developer's credentials impersonated"):
            async with http.get("http://127.0.0.1:9081/hello") as response:
                answer = await response.text()
            check(response.status == 200, f"{response.status} {answer}")
            check(json.loads(answer)["claims"]["email"] == INVOKER, answer)


async def several_workers(stack: Stack) -> None:
    """Workers share memory, which a read-only root has to have room for."""
    service = replace(stack.services["sidecar-gcloud"], volumes=(), user=None)
    settings = {"CLOUDRUN_SIDECAR_WORKERS": "2", "CLOUDRUN_SIDECAR_UPSTREAM": URL}
    with step("two workers on a read-only root"):
        async with stack.up(stack.container("sidecar-gcloud", service, **settings)) as child:
            check(sum('"listening"' in line for line in child.lines) == 2, child.tail())


def run(plan: Plan) -> None:
    """Run everything; raises Wrong or ProgramFailed."""
    with TemporaryDirectory(prefix="cloudrun-sidecar-stack-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        home = folder / "home"
        (home / ".config/gcloud").mkdir(parents=True)
        stack = Stack(folder, plan, {"HOME": str(home), "CLOUD_RUN_URL": f"{URL}:8443", "INVOKER": INVOKER})
        asyncio.run(dev_stack(stack))
        asyncio.run(gcloud_profile(stack, folder))
        asyncio.run(several_workers(stack))


@click.command()
@click.option("--suite", default="trixie", show_default=True, help="Debian release of the base.")
@click.option("--inside", "plan", hidden=True, type=click.Path(path_type=Path))
def main(suite: str, plan: Path | None) -> None:
    """Build the images, run the compose file's services in them, serve a request."""
    try:
        if plan is None:
            check(os.geteuid() == 0, "Debian's base and its containers are made by root alone; run it as root")
            sys.exit(build(suite))
        run(pickle.loads(plan.read_bytes()))
    except (BuildFailed, FileNotFoundError, ProgramFailed, Wrong) as exc:
        click.echo(f"\n{click.style('failed:', fg='red')} {exc}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m tests.shipping.image")
