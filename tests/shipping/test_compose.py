"""docker-compose.yml is valid for Compose, and its commands and settings for the sidecar and the emulator."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest

from proxy.emulator import API_HOSTS
from tests.readme.stages import Stage, assigned
from tests.shipping.commands import REPOSITORY, accepted, read_yaml, settings
from tests.shipping.docker_lines import chapters
from tests.support.compose import Service, interpolated, load, seconds, start_order
from tests.support.readme import commands

FILE = "docker-compose.yml"
DOCUMENT = read_yaml(FILE)[0]
SERVICES = load(REPOSITORY / FILE, {"HOME": "/home/me"})
URL = "https://greeter-abc.a.run.app"
ACCOUNT = "invoker@my-project.iam.gserviceaccount.com"


def emulated() -> dict[str, object]:
    command = SERVICES["google"].command
    assert command
    return accepted(command)


def compose_schema() -> Any:
    """Return the schema from an installed package whose dependencies are not installed."""
    found = importlib.util.find_spec("check_jsonschema")
    assert found is not None
    assert found.origin is not None
    return json.loads(Path(found.origin).with_name("builtin_schemas").joinpath("vendor/compose-spec.json").read_text())


def test_the_file_is_valid_for_compose() -> None:
    jsonschema.validate(DOCUMENT, compose_schema())


def test_make_image_runs_every_docker_command_of_the_pages() -> None:
    run = [command for block, after in chapters() for command in (*commands(block), *after)]
    assert run
    assert [command for command in assigned(Stage.IMAGE) if command not in run] == []


def test_the_schema_finds_a_mistake() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"services": {"a": {"imgae": "x"}}}, compose_schema())


def test_volumes_and_dependencies_are_defined() -> None:
    for service in DOCUMENT["services"].values():
        for volume in service.get("volumes", ()):
            assert volume.partition(":")[0] in DOCUMENT["volumes"]
        for secret in service.get("secrets", ()):
            assert secret in DOCUMENT["secrets"]
        assert set(service.get("depends_on", ())) <= set(DOCUMENT["services"])


def test_the_emulator_starts_before_the_sidecar_and_both_before_the_registration() -> None:
    assert start_order(SERVICES, "register") == ["restate", "google", "sidecar", "register"]
    for service in SERVICES.values():
        for name, condition in service.depends_on.items():
            assert condition == "service_healthy"
            assert SERVICES[name].health_command


def test_up_starts_the_emulated_stack_without_services_that_end() -> None:
    assert {name for name, service in SERVICES.items() if not service.profiles} == {"restate", "google", "sidecar"}


def test_the_version_of_restate_is_that_of_the_tests() -> None:
    version = re.search(r"^RESTATE_VERSION := (.+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert version
    for name in ("restate", "register"):
        assert SERVICES[name].image == f"docker.io/restatedev/restate:{version[1]}"


def test_the_settings_of_the_sidecar_are_valid() -> None:
    options = settings(["serve"], SERVICES["sidecar"].environment)
    assert options["listen"] == ["0.0.0.0:9081"]
    assert options["admin"] == "0.0.0.0:9091"
    assert options["drain_timeout"] < SERVICES["sidecar"].stop_grace_seconds


def test_the_sidecar_calls_the_emulated_service_as_an_invoker() -> None:
    (name, route), *more = settings(["serve"], SERVICES["sidecar"].environment)["routes"].items()
    options = emulated()
    assert not more
    assert route["url"] == options["url"]
    assert (route["gcp_impersonate_service_account"],) == options["invokers"]
    assert [grant.target for grant in options["grants"]] == [route["gcp_impersonate_service_account"]]  # type: ignore[attr-defined]  # click's own
    register = SERVICES["register"].command
    assert register
    assert json.loads(register[-1]) == {"uri": f"http://sidecar:9081/{name}"}


def test_googles_names_lead_to_the_emulator_at_googles_ports() -> None:
    options, google = emulated(), SERVICES["google"]
    url = urlsplit(str(options["url"]))
    assert set(google.aliases) == {"google", "metadata.google.internal", url.hostname, *API_HOSTS}
    assert (options["metadata_port"], options["tls_port"]) == (80, 443)
    assert options["cloud_run_port"] == url.port
    assert google.sysctls == {"net.ipv4.ip_unprivileged_port_start": "0"}


def test_the_sidecar_trusts_the_emulators_authority() -> None:
    volume = {mount.source: mount for mount in SERVICES["google"].volumes}["google"]
    assert str(emulated()["directory"]) == volume.target
    seen = {mount.source: mount for mount in SERVICES["sidecar"].volumes}["google"]
    assert seen.read_only
    assert SERVICES["sidecar"].environment["SSL_CERT_FILE"] == f"{seen.target}/ca.pem"


def test_the_sample_service_is_in_the_image_that_runs_it() -> None:
    assert SERVICES["google"].target == "dev"
    module, _, attribute = str(emulated()["application"]).partition(":")
    assert hasattr(importlib.import_module(module), attribute)
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    assert f"COPY {module.replace('.', '/')}.py /sample/" in dockerfile


def test_ports_are_published_on_loopback_only_and_the_sidecars_not_at_all() -> None:
    for service in DOCUMENT["services"].values():
        for port in service.get("ports", ()):
            host, _, inside = port.split(":")
            assert host == "127.0.0.1"
            assert inside != "9081"


@pytest.mark.parametrize("service", [service for service in SERVICES.values() if "cloudrun" in service.image])
def test_our_images_run_unprivileged(service: Service) -> None:
    options = DOCUMENT["services"][service.name]
    assert service.read_only
    assert options["cap_drop"] == ["ALL"]
    assert options["security_opt"] == ["no-new-privileges:true"]
    assert service.user != "0:0"


@pytest.mark.parametrize("name", ["google", "sidecar", "sidecar-gcloud"])
def test_health_checks_use_the_right_address(name: str) -> None:
    program, *words = SERVICES[name].health_command
    assert program == "cloudrun-sidecar"
    options = accepted(words)
    if name == "google":
        assert (options["admin"], options["path"]) == ("127.0.0.1:80", "/emulator/state")
    else:
        assert options["admin"] is None
        assert SERVICES[name].environment["CLOUDRUN_SIDECAR_ADMIN"].endswith(":9091")


def test_the_profile_gets_service_and_invoker_from_the_environment() -> None:
    given = {"HOME": "/home/me", "CLOUD_RUN_URL": URL, "INVOKER": ACCOUNT, "LOCAL_USER": "501:20"}
    service = load(REPOSITORY / FILE, given)["sidecar-gcloud"]
    (route,) = settings(["serve"], service.environment)["routes"].values()
    assert route["url"] == URL
    assert route["gcp_impersonate_service_account"] == ACCOUNT
    assert service.user == "501:20"


def test_the_profile_reads_the_file_of_gcloud() -> None:
    (secret,) = SERVICES["sidecar-gcloud"].volumes
    assert secret.source == "/home/me/.config/gcloud/application_default_credentials.json"
    assert secret.target == SERVICES["sidecar-gcloud"].environment["GOOGLE_APPLICATION_CREDENTIALS"]
    assert secret.read_only


def test_the_profile_without_a_service_names_the_missing_setting() -> None:
    with pytest.raises(AssertionError, match="give --upstream URL"):
        settings(["serve"], SERVICES["sidecar-gcloud"].environment)


def test_the_commands_at_the_top_name_existing_services() -> None:
    commands = re.findall(r"^#   docker compose (.+)$", (REPOSITORY / FILE).read_text(), re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        named = [word for word in command.split() if word in DOCUMENT["services"]]
        assert named or command == "up --build --wait"


@pytest.mark.parametrize(
    ("text", "meant"),
    [("${A}", "1"), ("${B:-2}", "2"), ("${A:-2}", "1"), ("${B}", ""), ("$${A}", "${A}"), ("a${A}b${A}", "a1b1")],
)
def test_references_are_replaced_as_in_compose(text: str, meant: str) -> None:
    assert interpolated({"x": [text]}, {"A": "1"}) == {"x": [meant]}


@pytest.mark.parametrize("text", ["$A", "${A?x}", "5$"])
def test_other_references_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no reference"):
        interpolated(text, {"A": "1"})


@pytest.mark.parametrize(("text", "meant"), [("90s", 90), ("2m", 120)])
def test_durations_are_read(text: str, meant: int) -> None:
    assert seconds(text) == meant


def test_a_malformed_duration_is_refused() -> None:
    with pytest.raises(ValueError, match="no duration"):
        seconds("1h30m")


def test_a_health_check_that_needs_a_shell_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "compose.yml"
    file.write_text("services: {a: {image: x, healthcheck: {test: [CMD-SHELL, 'true']}}}")
    with pytest.raises(ValueError, match="needs a shell"):
        load(file, {})


def test_a_command_in_one_line_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "compose.yml"
    file.write_text("services: {a: {image: x, command: serve --route a=b}}")
    with pytest.raises(ValueError, match="not a list"):
        load(file, {})
