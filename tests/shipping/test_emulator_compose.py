"""config/emulator.compose.yml is valid for Compose, and leads a program to all that its description emulates."""

from __future__ import annotations

import re

import jsonschema

from proxy.emulator import API_HOSTS, description, echo, project
from tests.shipping.commands import REPOSITORY, accepted, read_yaml
from tests.shipping.test_compose import compose_schema
from tests.support.compose import load

FILE = "config/emulator.compose.yml"
DOCUMENT = read_yaml(FILE)[0]
SERVICES = load(REPOSITORY / FILE, {})
GOOGLE, CALLER = SERVICES["google"], SERVICES["caller"]


def _description() -> str:
    """Return the file that the option --config names, on this machine."""
    mounts = {mount.target: mount.source for mount in GOOGLE.volumes}
    (option,) = [word for word in GOOGLE.command or () if word.startswith("--config=")]
    return str((REPOSITORY / FILE).parent / mounts[option.removeprefix("--config=")])


def _options() -> dict[str, object]:
    return accepted(
        [f"--config={_description()}" if word.startswith("--config=") else word for word in GOOGLE.command or ()]
    )


def test_the_file_is_valid_for_compose() -> None:
    jsonschema.validate(DOCUMENT, compose_schema())
    named = re.findall(r"^#   docker compose --file (\S+) .*?(\w+)$", (REPOSITORY / FILE).read_text(), re.MULTILINE)
    assert named == [(FILE, "google"), (FILE, "caller")]


def test_googles_names_and_those_of_the_described_services_lead_to_the_emulator() -> None:
    found = description.read((REPOSITORY / "config" / "emulator.example.toml").read_text("utf-8"))
    _, services = project.build(found, {service.name: echo for service in found.services})
    assert set(GOOGLE.aliases) == {"google", "metadata.google.internal", *API_HOSTS, *services.names}
    options = _options()
    assert (options["metadata_port"], options["tls_port"]) == (80, 443)
    project.set_port(services, int(str(options["cloud_run_port"])))
    urls = {service.url: service for service in services.services}
    assert urls[CALLER.environment["URL"]].invokers == {found.metadata_account}


def test_the_caller_trusts_the_emulators_authority() -> None:
    volume = {mount.source: mount for mount in GOOGLE.volumes}["google"]
    assert str(_options()["directory"]) == volume.target
    (seen,) = CALLER.volumes
    assert (seen.source, seen.read_only) == (volume.source, True)
    assert CALLER.environment["SSL_CERT_FILE"] == f"{seen.target}/ca.pem"


def test_the_emulator_is_unprivileged_and_published_on_loopback_only() -> None:
    told = DOCUMENT["services"]["google"]
    assert GOOGLE.read_only
    assert (told["cap_drop"], told["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    assert [port.partition(":")[0] for port in told["ports"]] == ["127.0.0.1"]
    health = accepted(GOOGLE.health_command[1:])
    assert (health["admin"], health["path"]) == ("127.0.0.1:80", "/emulator/state")
    assert CALLER.depends_on == {"google": "service_healthy"}
