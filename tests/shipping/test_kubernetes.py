"""The kustomizations in config/kubernetes/ are valid, consistent, and have valid settings for the sidecar."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import yaml

from proxy.admin.plane import PATHS
from proxy.request_identity import check_key
from tests.shipping.commands import REPOSITORY, settings
from tests.shipping.kustomize import render
from tests.shipping.manifests import VERSIONS, Resource, container_ports, mapping, mistakes, read, refusals

FOLDER = "config/kubernetes"
OVERLAYS = ["beside", "shared"]
IMAGE = "europe-west1-docker.pkg.dev/my-project/restate/cloudrun-sidecar:0.1.0"


def resources(overlay: str) -> list[Resource]:
    return render(REPOSITORY / FOLDER / overlay)


def only(overlay: str, kind: str) -> Resource:
    (found,) = [resource for resource in resources(overlay) if resource["kind"] == kind]
    return found


def workload(overlay: str) -> Resource:
    (found,) = [resource for resource in resources(overlay) if resource["kind"] in ("Deployment", "StatefulSet")]
    return found


def pod(overlay: str) -> Resource:
    spec: Resource = workload(overlay)["spec"]["template"]["spec"]
    return spec


def containers(overlay: str) -> list[Resource]:
    return [*pod(overlay).get("initContainers", []), *pod(overlay)["containers"]]


def sidecar(overlay: str) -> Resource:
    (found,) = [container for container in containers(overlay) if container["image"] == IMAGE]
    return found


def sidecar_settings(overlay: str, folder: Path) -> Resource:
    """Return the settings of the sidecar, with its volume in `folder`."""
    (mount,) = sidecar(overlay)["volumeMounts"]
    (volume,) = [volume for volume in pod(overlay)["volumes"] if volume["name"] == mount["name"]]
    settings_map = only(overlay, "ConfigMap")
    assert volume["configMap"]["name"] == settings_map["metadata"]["name"]
    for name, text in settings_map["data"].items():
        (folder / name).write_text(text)
    arguments = [word.replace(mount["mountPath"], str(folder)) for word in sidecar(overlay)["args"]]
    return settings(arguments)


def changed(file: str, text: str, instead: str, folder: Path) -> None:
    """Copy everything to `folder`, with this text replaced in one file."""
    shutil.copytree(REPOSITORY / FOLDER, folder, dirs_exist_ok=True)
    whole = (folder / file).read_text()
    assert text in whole
    (folder / file).write_text(whole.replace(text, instead))


def octets(quantity: str) -> int:
    assert quantity.endswith("Mi")
    return int(quantity.removesuffix("Mi")) << 20


def by_name(rendered: Iterable[Resource]) -> dict[tuple[str, str], Resource]:
    return {(resource["kind"], resource["metadata"]["name"]): resource for resource in rendered}


def own_kustomization(folder: Path) -> Path:
    """Write the kustomization of the page, beside a clone, with all that it names; return its folder."""
    page = (REPOSITORY / "docs/kubernetes.md").read_text()
    (text,) = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    shutil.copytree(REPOSITORY / FOLDER, folder / "cloudrun-sidecar" / FOLDER)
    own = folder / "restate-on-gke"
    own.mkdir()
    (own / "kustomization.yaml").write_text(text)
    (own / "routes.toml").write_text('[routes.orders]\nurl = "https://orders-123456789012.europe-west1.run.app"\n')
    return own


def test_the_overlays_stand_on_one_base() -> None:
    assert sorted(path.name for path in (REPOSITORY / FOLDER).iterdir()) == ["base", *OVERLAYS]
    base = by_name(render(REPOSITORY / FOLDER / "base"))
    assert base
    for overlay in OVERLAYS:
        assert base.keys() <= by_name(resources(overlay)).keys()
        assert "../base" in mapping(REPOSITORY / FOLDER / overlay / "kustomization.yaml")["resources"]


@pytest.mark.parametrize(
    "folder", [*(f"cloudrun-sidecar/{FOLDER}/{overlay}" for overlay in OVERLAYS), "restate-on-gke"]
)
def test_kubectl_renders_the_same_where_there_is_one(folder: str, tmp_path: Path) -> None:
    own_kustomization(tmp_path)
    rendered = by_name(render(tmp_path / folder))
    assert {kind for kind, _ in rendered} >= {"Namespace", "ServiceAccount", "ConfigMap"}
    if (kubectl := shutil.which("kubectl")) is not None:
        ran = subprocess.run([kubectl, "kustomize", tmp_path / folder], capture_output=True, text=True, check=True)
        assert by_name(yaml.safe_load_all(ran.stdout)) == rendered


def test_a_kustomization_of_ones_own_sets_image_account_and_routes(tmp_path: Path) -> None:
    there = render(own_kustomization(tmp_path))
    assert list(mistakes(there)) == []
    assert [refusal for resource in there for version in VERSIONS for refusal in refusals(resource, version)] == []
    named = by_name(there)
    account = named["ServiceAccount", "cloudrun-sidecar"]["metadata"]["annotations"]["iam.gke.io/gcp-service-account"]
    assert account == "restate-invoker@acme.iam.gserviceaccount.com"
    (container,) = named["Deployment", "cloudrun-sidecar"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "europe-west1-docker.pkg.dev/acme/restate/cloudrun-sidecar:0.1.0"
    assert named["ConfigMap", "cloudrun-sidecar"]["data"].keys() == {"routes.toml"}
    assert "routes.orders" in named["ConfigMap", "cloudrun-sidecar"]["data"]["routes.toml"]


@pytest.mark.parametrize(
    ("file", "text", "instead", "mistake"),
    [
        ("shared/kustomization.yaml", "namespace:", "namePrefix:", "not known here: namePrefix"),
        ("shared/kustomization.yaml", "kind: Kustomization", "kind: Component", "is no kustomization"),
        ("shared/kustomization.yaml", "- sidecar.yaml", "- ../beside/restate.yaml", "is outside of its folder"),
        ("shared/kustomization.yaml", "disableNameSuffixHash: true", "disableNameSuffixHash: false", "a hash of"),
        (
            "shared/kustomization.yaml",
            "    behavior: replace\n",
            "",
            "there are 1 ConfigMaps cloudrun-sidecar to create",
        ),
        ("shared/kustomization.yaml", "behavior: replace", "behavior: merge", "is not known here"),
        ("shared/sidecar.yaml", "image: cloudrun-sidecar", "image: cloudrun-sidecar@sha256:00", "with a digest"),
    ],
)
def test_a_kustomization_that_cannot_be_rendered_is_refused(
    file: str, text: str, instead: str, mistake: str, tmp_path: Path
) -> None:
    changed(file, text, instead, tmp_path)
    with pytest.raises(yaml.YAMLError, match=mistake):
        render(tmp_path / "shared")


@pytest.mark.parametrize(
    ("patch", "mistake"),
    [
        ("{target: {kind: Deployment}, patch: '{}'}", "a patch without a target"),
        ("{patch: '{kind: Deployment, metadata: {name: a}}'}", "there is no Deployment a to patch"),
        ("{patch: '{kind: Service, metadata: {name: cloudrun-sidecar}, spec: {ports: [1]}}'}", "the list ports"),
    ],
)
def test_a_patch_that_cannot_be_merged_is_refused(patch: str, mistake: str, tmp_path: Path) -> None:
    changed("shared/kustomization.yaml", "images:\n", f"patches:\n  - {patch}\nimages:\n", tmp_path)
    with pytest.raises(yaml.YAMLError, match=mistake):
        render(tmp_path / "shared")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_resource_is_valid_for_kubernetes(overlay: str, version: str) -> None:
    assert [refusal for resource in resources(overlay) for refusal in refusals(resource, version)] == []


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
    deployment = workload("shared")
    deployment["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"] = {"sleep": {"second": 5}}
    (refusal,) = refusals(deployment, VERSIONS[0])
    assert "second" in refusal


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_names_and_labels_refer_to_something(overlay: str) -> None:
    assert list(mistakes(resources(overlay))) == []
    assert len({resource["metadata"].get("namespace") for resource in resources(overlay)} - {None}) == 1


@pytest.mark.parametrize(
    ("file", "text", "instead", "mistake"),
    [
        ("shared/sidecar.yaml", "targetPort: h2c", "targetPort: http", "no container has a port http"),
        (
            "shared/sidecar.yaml",
            "serviceAccountName: cloudrun-sidecar",
            "serviceAccountName: a",
            "there is no ServiceAccount a",
        ),
        (
            "shared/sidecar.yaml",
            "kind: Deployment\n    name: cloudrun-sidecar",
            "kind: Deployment\n    name: a",
            "no Deployment a",
        ),
        (
            "shared/namespace.yaml",
            "kind: Namespace",
            "kind: Secret",
            "the namespace cloudrun-sidecar, which is not there before",
        ),
        (
            "shared/sidecar.yaml",
            "- name: settings\n              mountPath",
            "- name: a\n              mountPath",
            "no volume a",
        ),
        (
            "shared/sidecar.yaml",
            "path: /livez\n              port: admin",
            "path: /livez\n              port: a",
            "the livenessProbe",
        ),
        (
            "beside/restate.yaml",
            "name: restate-nodes\nspec",
            "name: restate\nspec",
            "Service restate is there twice",
        ),
        ("beside/restate.yaml", "serviceName: restate-nodes", "serviceName: a", "there is no Service a"),
        ("beside/restate.yaml", "app.kubernetes.io/name: restate\n  ports", "app: a\n  ports", "no pod has the labels"),
        ("beside/restate.yaml", "cloudrun-sidecar\n        - name: s", "a\n        - name: s", "no ConfigMap a"),
        ("beside/network-policy.yaml", "port: 9091", "port: sidecar-admin", "no container has a port sidecar-admin"),
    ],
)
def test_a_broken_reference_is_reported(file: str, text: str, instead: str, mistake: str, tmp_path: Path) -> None:
    changed(file, text, instead, tmp_path)
    sidecar_settings = list(mistakes(render(tmp_path / Path(file).parent)))
    assert any(mistake in one for one in sidecar_settings), sidecar_settings


def test_a_duplicate_field_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  name: b\n")
    with pytest.raises(yaml.YAMLError, match="name is given twice"):
        read(file)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_are_valid_and_the_sidecar_listens_on_its_ports(overlay: str, tmp_path: Path) -> None:
    result = sidecar_settings(overlay, tmp_path)
    listening = {int(address.rpartition(":")[2]) for address in result["listen"]}
    admin = int(result["admin"].rpartition(":")[2])
    if overlay == "shared":
        assert set(container_ports(sidecar(overlay)).values()) == {*listening, admin}
        (port,) = only(overlay, "Service")["spec"]["ports"]
        assert {port["port"]} == listening
    else:
        assert result["listen"] == ["127.0.0.1:9081"]
        assert set(container_ports(sidecar(overlay)).values()) == {admin}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_kubelet_can_reach_the_admin_port(overlay: str, tmp_path: Path) -> None:
    admin = sidecar_settings(overlay, tmp_path)["admin"]
    assert admin.startswith("0.0.0.0:")
    for probe, path in (("startupProbe", "/startupz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")):
        asked = sidecar(overlay)[probe]["httpGet"]
        assert asked["path"] == path
        assert path in PATHS
        assert container_ports(sidecar(overlay))[asked["port"]] == int(admin.rpartition(":")[2])
    annotations = workload(overlay)["spec"]["template"]["metadata"]["annotations"]
    assert f"0.0.0.0:{annotations['prometheus.io/port']}" == admin
    assert annotations["prometheus.io/path"] in PATHS


def test_a_shared_sidecar_takes_only_what_a_known_restate_has_signed(tmp_path: Path) -> None:
    (key,) = sidecar_settings("shared", tmp_path)["restate_identity_keys"]
    assert check_key(key) == key


def test_a_shared_sidecar_can_drain_before_it_is_killed(tmp_path: Path) -> None:
    pause = sidecar("shared")["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = sidecar_settings("shared", tmp_path)["drain_timeout"]
    assert pod("shared")["terminationGracePeriodSeconds"] > pause + drain


def test_a_sidecar_in_restates_pod_can_drain_after_restate_has_ended(tmp_path: Path) -> None:
    # Restate's own `shutdown-timeout` is a minute.
    drain = sidecar_settings("beside", tmp_path)["drain_timeout"]
    assert pod("beside")["terminationGracePeriodSeconds"] > 60 + drain


def test_the_sidecar_starts_before_restate_and_stops_after_it() -> None:
    (init,) = pod("beside")["initContainers"]
    assert init is not None
    assert init["image"] == IMAGE
    assert init["restartPolicy"] == "Always"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_memory_limit_allows_the_queued_octets(overlay: str, tmp_path: Path) -> None:
    limit = octets(sidecar(overlay)["resources"]["limits"]["memory"])
    settings = sidecar_settings(overlay, tmp_path)
    assert limit >= settings["workers"] * (1.25 * settings["queued_octets"] + (64 << 20))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_containers_run_unprivileged(overlay: str) -> None:
    assert only(overlay, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    spec = pod(overlay)
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    shared = spec["securityContext"]
    assert (shared["runAsNonRoot"], shared["runAsUser"]) == (True, 65532)
    assert shared["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(overlay):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workload_identity_names_a_google_account(overlay: str) -> None:
    annotations: Mapping[str, str] = only(overlay, "ServiceAccount")["metadata"]["annotations"]
    account = annotations["iam.gke.io/gcp-service-account"]
    text = (REPOSITORY / FOLDER / overlay / "kustomization.yaml").read_text()
    namespace, name = (
        only(overlay, "Namespace")["metadata"]["name"],
        only(overlay, "ServiceAccount")["metadata"]["name"],
    )
    assert f"add-iam-policy-binding {account}" in text
    assert f"serviceAccount:my-project.svc.id.goog[{namespace}/{name}]" in text


def test_only_the_autoscaler_sets_replicas() -> None:
    deployment, scaler = workload("shared"), only("shared", "HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in deployment["spec"]
    assert scaler["spec"]["minReplicas"] > only("shared", "PodDisruptionBudget")["spec"]["maxUnavailable"]
    # One worker cannot use more than one processor: a target above that would never be reached.
    requested = int(sidecar("shared")["resources"]["requests"]["cpu"].removesuffix("m"))
    target = scaler["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"]
    assert requested * target / 100 < 1000


COLLECTORS = ["monitoring", "gmp-system", "gke-gmp-system"]  # one's own Prometheus, or the one that reads PodMonitoring


def test_the_network_policy_allows_restate_in_and_metadata_google_and_dns_out() -> None:
    policy = only("shared", "NetworkPolicy")["spec"]
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    restate, metrics = policy["ingress"]
    (caller,) = restate["from"]
    assert caller["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": only("beside", "Namespace")["metadata"]["name"]
    }
    assert caller["podSelector"]["matchLabels"].items() <= workload("beside")["metadata"]["labels"].items()
    assert (restate["ports"], metrics["ports"]) == ([{"port": "h2c"}], [{"port": "admin"}])
    assert metrics["from"][0]["namespaceSelector"]["matchExpressions"][0]["values"] == COLLECTORS
    out = {port["port"]: {to.get("ipBlock", {}).get("cidr", "pods") for rule in policy["egress"] for to in rule["to"]
           if port in rule["ports"]} for rule in policy["egress"] for port in rule["ports"]}  # fmt: skip
    assert out[53] == {"pods", "169.254.20.10/32", "169.254.169.254/32"}
    assert (out[80], out[988], out[443]) == ({"169.254.169.254/32"}, {"169.254.169.252/32"}, {"0.0.0.0/0", "::/0"})


def test_the_network_policy_beside_restate_opens_the_admin_ports_to_few_and_the_listener_to_nobody(
    tmp_path: Path,
) -> None:
    policy = only("beside", "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["podSelector"]["matchLabels"].items() <= workload("beside")["metadata"]["labels"].items()
    opened = {port["port"]: rule.get("from") for rule in policy["ingress"] for port in rule["ports"]}
    assert opened["ingress"] is None
    assert opened[9091][0]["namespaceSelector"]["matchExpressions"][0]["values"] == COLLECTORS
    for rule in policy["ingress"]:
        if {"port": "admin"} in rule["ports"]:
            assert rule["from"] == [{"podSelector": {}}]
    (restate,) = pod("beside")["containers"]
    assert set(opened) == {*container_ports(restate), *container_ports(sidecar("beside")).values()}
    (listening,) = sidecar_settings("beside", tmp_path)["listen"]
    assert listening.startswith("127.0.0.1:")
