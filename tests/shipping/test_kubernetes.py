"""The manifests in config/kubernetes/ are valid, consistent, and have valid settings for the sidecar."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from proxy.admin.plane import PATHS
from proxy.request_identity import check_key
from tests.shipping.commands import REPOSITORY, settings
from tests.shipping.manifests import VERSIONS, Resource, container_ports, mistakes, read, refusals

FOLDER = "config/kubernetes"
FILES = sorted(path.name for path in (REPOSITORY / FOLDER).glob("*.yaml"))
IMAGE = "europe-west1-docker.pkg.dev/my-project/restate/cloudrun-sidecar:0.1.0"


def resources(file: str) -> list[Resource]:
    return read(REPOSITORY / FOLDER / file)


def only(file: str, kind: str) -> Resource:
    (found,) = [resource for resource in resources(file) if resource["kind"] == kind]
    return found


def workload(file: str) -> Resource:
    (found,) = [resource for resource in resources(file) if resource["kind"] in ("Deployment", "StatefulSet")]
    return found


def pod(file: str) -> Resource:
    spec: Resource = workload(file)["spec"]["template"]["spec"]
    return spec


def containers(file: str) -> list[Resource]:
    return [*pod(file).get("initContainers", []), *pod(file)["containers"]]


def sidecar(file: str) -> Resource:
    (found,) = [container for container in containers(file) if container["image"] == IMAGE]
    return found


def sidecar_settings(file: str, folder: Path) -> Resource:
    """Return the settings of the sidecar, with its volume in `folder`."""
    (mount,) = sidecar(file)["volumeMounts"]
    (volume,) = [volume for volume in pod(file)["volumes"] if volume["name"] == mount["name"]]
    settings_map = only(file, "ConfigMap")
    assert volume["configMap"]["name"] == settings_map["metadata"]["name"]
    for name, text in settings_map["data"].items():
        (folder / name).write_text(text)
    arguments = [word.replace(mount["mountPath"], str(folder)) for word in sidecar(file)["args"]]
    return settings(arguments)


def octets(quantity: str) -> int:
    assert quantity.endswith("Mi")
    return int(quantity.removesuffix("Mi")) << 20


def test_both_manifests_exist() -> None:
    assert FILES == ["beside-restate.yaml", "shared.yaml"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", FILES)
def test_every_resource_is_valid_for_kubernetes(file: str, version: str) -> None:
    assert [refusal for resource in resources(file) for refusal in refusals(resource, version)] == []


def test_the_page_pushes_the_image_that_the_manifests_name() -> None:
    page = (REPOSITORY / "docs/kubernetes.md").read_text()
    assert f"docker build --tag {IMAGE} .\ndocker push {IMAGE}\n" in page
    registry, project, repository, _ = IMAGE.split("/")
    assert f"gcloud auth configure-docker {registry}\n" in page
    location = registry.removesuffix("-docker.pkg.dev")
    assert (
        f"gcloud artifacts repositories create {repository} --repository-format docker --location {location}\n" in page
    )
    assert project == "my-project"


def test_the_schemas_find_a_mistake() -> None:
    deployment = workload("shared.yaml")
    deployment["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"] = {"sleep": {"second": 5}}
    (refusal,) = refusals(deployment, VERSIONS[0])
    assert "second" in refusal


@pytest.mark.parametrize("file", FILES)
def test_names_and_labels_refer_to_something(file: str) -> None:
    assert list(mistakes(resources(file))) == []
    assert len({resource["metadata"].get("namespace") for resource in resources(file)} - {None}) == 1


@pytest.mark.parametrize(
    ("file", "text", "instead", "mistake"),
    [
        ("shared.yaml", "targetPort: h2c", "targetPort: http", "no container has a port http"),
        (
            "shared.yaml",
            "serviceAccountName: cloudrun-sidecar",
            "serviceAccountName: a",
            "there is no ServiceAccount a",
        ),
        (
            "shared.yaml",
            "kind: Deployment\n    name: cloudrun-sidecar",
            "kind: Deployment\n    name: a",
            "no Deployment a",
        ),
        (
            "shared.yaml",
            "kind: Namespace",
            "kind: ConfigMap",
            "the namespace cloudrun-sidecar, which is not there before",
        ),
        (
            "shared.yaml",
            "- name: settings\n              mountPath",
            "- name: a\n              mountPath",
            "no volume a",
        ),
        (
            "shared.yaml",
            "path: /livez\n              port: admin",
            "path: /livez\n              port: a",
            "the livenessProbe",
        ),
        (
            "beside-restate.yaml",
            "name: restate-nodes\n  names",
            "name: restate\n  names",
            "Service restate is there twice",
        ),
        ("beside-restate.yaml", "serviceName: restate-nodes", "serviceName: a", "there is no Service a"),
        ("beside-restate.yaml", "app.kubernetes.io/name: restate\n  ports", "app: a\n  ports", "no pod has the labels"),
        (
            "beside-restate.yaml",
            "configMap:\n            name: cloudrun-sidecar",
            "configMap: {name: a}",
            "no ConfigMap a",
        ),
    ],
)
def test_a_broken_reference_is_reported(file: str, text: str, instead: str, mistake: str, tmp_path: Path) -> None:
    whole = (REPOSITORY / FOLDER / file).read_text()
    assert text in whole
    (tmp_path / file).write_text(whole.replace(text, instead))
    sidecar_settings = list(mistakes(read(tmp_path / file)))
    assert any(mistake in one for one in sidecar_settings), sidecar_settings


def test_a_duplicate_field_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  name: b\n")
    with pytest.raises(yaml.YAMLError, match="name is given twice"):
        read(file)


@pytest.mark.parametrize("file", FILES)
def test_the_settings_are_valid_and_the_sidecar_listens_on_its_ports(file: str, tmp_path: Path) -> None:
    result = sidecar_settings(file, tmp_path)
    listening = {int(address.rpartition(":")[2]) for address in result["listen"]}
    admin = int(result["admin"].rpartition(":")[2])
    if file == "shared.yaml":
        assert set(container_ports(sidecar(file)).values()) == {*listening, admin}
        (port,) = only(file, "Service")["spec"]["ports"]
        assert {port["port"]} == listening
    else:
        assert result["listen"] == ["127.0.0.1:9081"]
        assert set(container_ports(sidecar(file)).values()) == {admin}


@pytest.mark.parametrize("file", FILES)
def test_a_kubelet_can_reach_the_admin_port(file: str, tmp_path: Path) -> None:
    admin = sidecar_settings(file, tmp_path)["admin"]
    assert admin.startswith("0.0.0.0:")
    for probe, path in (("startupProbe", "/startupz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")):
        asked = sidecar(file)[probe]["httpGet"]
        assert asked["path"] == path
        assert path in PATHS
        assert container_ports(sidecar(file))[asked["port"]] == int(admin.rpartition(":")[2])
    annotations = workload(file)["spec"]["template"]["metadata"]["annotations"]
    assert f"0.0.0.0:{annotations['prometheus.io/port']}" == admin
    assert annotations["prometheus.io/path"] in PATHS


def test_a_shared_sidecar_takes_only_what_a_known_restate_has_signed(tmp_path: Path) -> None:
    (key,) = sidecar_settings("shared.yaml", tmp_path)["restate_identity_keys"]
    assert check_key(key) == key


def test_a_shared_sidecar_can_drain_before_it_is_killed(tmp_path: Path) -> None:
    pause = sidecar("shared.yaml")["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = sidecar_settings("shared.yaml", tmp_path)["drain_timeout"]
    assert pod("shared.yaml")["terminationGracePeriodSeconds"] > pause + drain


def test_a_sidecar_in_restates_pod_can_drain_after_restate_has_ended(tmp_path: Path) -> None:
    # Restate's own `shutdown-timeout` is a minute.
    drain = sidecar_settings("beside-restate.yaml", tmp_path)["drain_timeout"]
    assert pod("beside-restate.yaml")["terminationGracePeriodSeconds"] > 60 + drain


def test_the_sidecar_starts_before_restate_and_stops_after_it() -> None:
    (init,) = pod("beside-restate.yaml")["initContainers"]
    assert init is not None
    assert init["image"] == IMAGE
    assert init["restartPolicy"] == "Always"


@pytest.mark.parametrize("file", FILES)
def test_the_memory_limit_allows_the_queued_octets(file: str, tmp_path: Path) -> None:
    limit = octets(sidecar(file)["resources"]["limits"]["memory"])
    settings = sidecar_settings(file, tmp_path)
    assert limit >= settings["workers"] * (1.25 * settings["queued_octets"] + (64 << 20))


@pytest.mark.parametrize("file", FILES)
def test_containers_run_unprivileged(file: str) -> None:
    assert only(file, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    spec = pod(file)
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    shared = spec["securityContext"]
    assert (shared["runAsNonRoot"], shared["runAsUser"]) == (True, 65532)
    assert shared["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(file):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("file", FILES)
def test_workload_identity_names_a_google_account(file: str) -> None:
    annotations: Mapping[str, str] = only(file, "ServiceAccount")["metadata"]["annotations"]
    account = annotations["iam.gke.io/gcp-service-account"]
    text = (REPOSITORY / FOLDER / file).read_text()
    namespace, name = only(file, "Namespace")["metadata"]["name"], only(file, "ServiceAccount")["metadata"]["name"]
    assert f"add-iam-policy-binding {account}" in text
    assert f"serviceAccount:my-project.svc.id.goog[{namespace}/{name}]" in text


def test_only_the_autoscaler_sets_replicas() -> None:
    deployment, scaler = workload("shared.yaml"), only("shared.yaml", "HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in deployment["spec"]
    assert scaler["spec"]["minReplicas"] > only("shared.yaml", "PodDisruptionBudget")["spec"]["maxUnavailable"]
    # One worker cannot use more than one processor: a target above that would never be reached.
    requested = int(sidecar("shared.yaml")["resources"]["requests"]["cpu"].removesuffix("m"))
    target = scaler["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"]
    assert requested * target / 100 < 1000


def test_the_network_policy_allows_restate_in_and_metadata_google_and_dns_out() -> None:
    policy = only("shared.yaml", "NetworkPolicy")["spec"]
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    restate, metrics = policy["ingress"]
    (caller,) = restate["from"]
    assert caller["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": only("beside-restate.yaml", "Namespace")["metadata"]["name"]
    }
    assert caller["podSelector"]["matchLabels"].items() <= workload("beside-restate.yaml")["metadata"]["labels"].items()
    assert (restate["ports"], metrics["ports"]) == ([{"port": "h2c"}], [{"port": "admin"}])
    out = {(rule["to"][0].get("ipBlock", {}).get("cidr", "dns"), rule["ports"][0]["port"]) for rule in policy["egress"]}
    assert {("169.254.169.254/32", 80), ("169.254.169.252/32", 988), ("0.0.0.0/0", 443), ("dns", 53)} <= out


def test_the_network_policy_beside_restate_opens_the_admin_ports_to_few_and_the_listener_to_nobody(
    tmp_path: Path,
) -> None:
    policy = only("beside-restate.yaml", "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["podSelector"]["matchLabels"].items() <= workload("beside-restate.yaml")["metadata"]["labels"].items()
    opened = {port["port"]: rule.get("from") for rule in policy["ingress"] for port in rule["ports"]}
    assert opened["ingress"] is None
    assert opened["sidecar-admin"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ]
    for rule in policy["ingress"]:
        if {"port": "admin"} in rule["ports"]:
            assert rule["from"] == [{"podSelector": {}}]
    ports = {name for container in containers("beside-restate.yaml") for name in container_ports(container)}
    assert set(opened) == ports
    (listening,) = sidecar_settings("beside-restate.yaml", tmp_path)["listen"]
    assert listening.startswith("127.0.0.1:")
