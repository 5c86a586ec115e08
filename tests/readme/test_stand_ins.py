"""The stand-ins refuse every command that they do not know exactly, with a sentence."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from proxy.emulator import CloudRun, Google, echo
from tests.readme.gcloud import Gcloud
from tests.readme.kubectl import Kubectl
from tests.readme.shell import FROM_MAKE, Shell
from tests.readme.stand_in import Call, Does, Refused, on_path, read
from tests.readme.systemctl import Systemctl
from tests.shipping.buildah import Builder
from tests.shipping.docker import Docker
from tests.support.processes import program
from tests.support.readme import REPOSITORY


def gcloud(_: Path) -> Does:
    google = Google()
    return Gcloud(google, CloudRun(echo, google, invokers=[])).do


STAND_INS: Mapping[str, Callable[[Path], Does]] = {
    "gcloud": gcloud,
    "kubectl": lambda _: Kubectl().do,
    "systemctl": lambda _: Systemctl().do,
    "docker": lambda folder: Docker(Builder(folder, network=0), folder).do,
}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("gcloud run delete greeter", "no such command"),
        ("gcloud run deploy greeter --allow-unauthenticated", "no option --allow-unauthenticated"),
        ("gcloud run deploy greeter --source . --region here --use-http2", "options are"),
        ("gcloud run services update greeter --region here --timeout 7200", "cannot be updated like this"),
        ("gcloud run services update greeter --timeout 60", "the region is missing"),
        ("kubectl apply --filename x", "no option --filename"),
        ("kubectl delete -k config/kubernetes/shared", "all that is known"),
        ("kubectl apply -f docker-compose.yml", "no option -f"),
        ("kubectl apply -k config/nothing", "No such file"),
        ("docker pull debian", "all that is known"),
        ("docker build .", "a --tag are needed"),
        ("docker build --tag x --no-cache .", "no option --no-cache"),
        ("docker run --rm --read-only --network host cloudrun-sidecar", "has no rights"),
        ("docker run --rm --read-only --cap-drop ALL --network bridge cloudrun-sidecar", "the one network"),
        ("docker run --rm --publish 9081:9081 cloudrun-sidecar", "no option --publish"),
        ("docker compose down", "all that is known"),
        ("docker compose up --build", "--wait is needed"),
        ("docker compose up --wait nothing", "no service nothing"),
        ("docker compose --profile nothing up --wait", "no service has the profile nothing"),
        ("docker compose run register", "and then removed"),
        ("docker compose restart google", "no service google here"),
        ("systemctl start cloudrun-sidecar", "all that is known"),
        ("systemctl enable --now nothing-of-ours", "is not there"),
    ],
)
async def test_an_unknown_command_is_refused(line: str, sentence: str, tmp_path: Path) -> None:
    name, *words = line.split()
    call = Call(program=name, words=words, folder=REPOSITORY, environment={"HOME": "/nonexistent"})
    with pytest.raises(Refused, match=sentence):
        await STAND_INS[name](tmp_path)(call)


@pytest.mark.asyncio
async def test_an_invalid_manifest_is_refused_with_all_errors(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "config/kubernetes", tmp_path / "kubernetes")
    file = tmp_path / "kubernetes/shared/sidecar.yaml"
    text = file.read_text()
    call = Call(program="kubectl", words=["apply", "-k", "kubernetes/shared"], folder=tmp_path, environment={})
    file.write_text(text.replace("minReplicas", "minReplica"))
    with pytest.raises(Refused, match=r"HorizontalPodAutoscaler cloudrun-sidecar: .*minReplica"):
        await Kubectl().do(call)
    file.write_text(text.replace("targetPort: h2c", "targetPort: http"))
    with pytest.raises(Refused, match="Service cloudrun-sidecar: no container has a port http"):
        await Kubectl().do(call)


@pytest.mark.parametrize("words", [["--a", "--a"], ["--b"], ["--c"]])
def test_duplicate_incomplete_and_unknown_options_are_refused(words: Sequence[str]) -> None:
    with pytest.raises(Refused):
        read(words, flags=["--a"], valued=["--b"])


def test_options_can_end_at_the_first_positional_argument() -> None:
    assert read(["--a", "x", "--a"], flags=["--a"], then=True) == (["x", "--a"], {"--a": ""})


@pytest.mark.asyncio
async def test_a_stand_in_prints_refuses_and_gets_sigterm(tmp_path: Path) -> None:
    started = asyncio.Event()

    async def tell(call: Call) -> str:
        if call.words == ["wait"]:
            started.set()
            await call.told_to_end()
            return "ended\n"
        if call.words:
            raise Refused("none of that")
        return f"{call.program} in {call.folder} with {call.environment['GIVEN']}\n"

    async with on_path(tmp_path, {"tell": tell}) as path:
        environment = {"PATH": path, "GIVEN": "1"}
        async with program("tell", ["sh", "-c", f"cd {tmp_path} && exec tell"], env=environment) as child:
            assert await child.ended() == 0
            assert child.lines == [f"tell in {tmp_path} with 1"]
        async with program("tell", ["sh", "-c", "exec tell 'a b'"], env=environment) as child:
            assert await child.ended() == 1
            assert child.lines == ["tell 'a b': none of that"]
        async with program("tell", ["sh", "-c", "exec tell wait"], env=environment) as child:
            await started.wait()
            assert await child.stop() == 0
            assert child.lines == ["ended"]


@pytest.mark.asyncio
async def test_variables_of_an_outer_make_do_not_reach_an_inner_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FROM_MAKE:
        monkeypatch.setenv(name, "-- ARGS=-n0")
    (tmp_path / "Makefile").write_text("demo:\n\t@echo demo $(ARGS)\n")
    assert await Shell(tmp_path, {}).type("make --no-print-directory demo") == "demo"
