"""Validates Kubernetes manifests as an API server does, and finds broken references in them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import kubernetes_validate
import yaml

__all__ = ["VERSIONS", "Resource", "container_ports", "mapping", "mistakes", "read", "refusals"]

Resource: TypeAlias = dict[str, Any]

VERSIONS: Final = ("1.30", kubernetes_validate.latest_version())
"""1.30 is the oldest with a pause before SIGTERM without a shell; the newest one shows removed fields."""

_WORKLOADS: Final = ("Deployment", "StatefulSet")


class _Strict(yaml.SafeLoader):
    """Refuses duplicate fields, as strict validation does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read(file: Path) -> list[Resource]:
    """Return the documents of a file; raises yaml.YAMLError for invalid YAML, a duplicate field, or no resource."""
    documents = list(yaml.load_all(file.read_text(), _Strict))
    for number, document in enumerate(documents, 1):
        if not isinstance(document, dict) or not {"apiVersion", "kind", "metadata"} <= document.keys():
            raise yaml.YAMLError(f"document {number} of {file.name} is no resource")
    return documents


def mapping(file: Path) -> dict[str, Any]:
    """Return the one mapping in a file; raises yaml.YAMLError for invalid YAML, a duplicate field, or anything else."""
    document = yaml.load(file.read_text(), _Strict)
    if not isinstance(document, dict):
        raise yaml.YAMLError(f"{file.name} has no fields")
    return document


def refusals(resource: Resource, version: str) -> Iterator[str]:
    """Yield the API server's errors about a resource: unknown fields, wrong types, missing fields."""
    try:
        kubernetes_validate.validate(resource, version, strict=True)
    except kubernetes_validate.ValidationError as exc:
        yield f"{resource['kind']} {resource['metadata']['name']}: {exc}"


def mistakes(resources: Sequence[Resource]) -> Iterator[str]:
    """Yield duplicates and broken references among resources that are applied in this order."""
    seen: set[tuple[str, str, str]] = set()
    for resource in resources:
        kind, name, namespace = resource["kind"], resource["metadata"]["name"], resource["metadata"].get("namespace")
        if (kind, namespace or "", name) in seen:
            yield f"{kind} {name} is there twice"
        seen.add((kind, namespace or "", name))
        if kind != "Namespace" and ("Namespace", "", namespace) not in seen:
            yield f"{kind} {name} is in the namespace {namespace}, which is not there before it"
    for resource in resources:
        around = [one for one in resources if one["metadata"].get("namespace") == resource["metadata"].get("namespace")]
        for what in _astray(resource, around):
            yield f"{resource['kind']} {resource['metadata']['name']}: {what}"


def container_ports(container: Resource) -> dict[str, int]:
    """Return the ports of a container by name."""
    return {port["name"]: port["containerPort"] for port in container.get("ports", ())}


def _astray(resource: Resource, around: Sequence[Resource]) -> Iterator[str]:
    """Yield broken references of a resource to others of its namespace."""
    spec = resource.get("spec", {})
    match resource["kind"]:
        case "Service":
            yield from _selecting(spec["selector"], [port["targetPort"] for port in spec["ports"]], around)
        case "PodDisruptionBudget":
            yield from _selecting(spec["selector"]["matchLabels"], [], around)
        case "NetworkPolicy":
            ports = [port["port"] for rule in spec["ingress"] for port in rule["ports"]]
            yield from _selecting(spec["podSelector"]["matchLabels"], ports, around, by_policy=True)
        case "HorizontalPodAutoscaler":
            yield from _there(spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"], around)
        case "Deployment" | "StatefulSet":
            yield from _selecting(spec["selector"]["matchLabels"], [], [resource])
            if "serviceName" in spec:
                yield from _there("Service", spec["serviceName"], around)
            claims = [claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", ())]
            yield from _pod(spec["template"]["spec"], claims, around)


def _selecting(
    labels: Mapping[str, str], ports: Sequence[object], around: Sequence[Resource], *, by_policy: bool = False
) -> Iterator[str]:
    """Yield errors of a selector of pods, and of their ports.

    Network policies know the names of ports of ordinary containers only: for a native sidecar's, Cilium (Dataplane V2
    of GKE) and older versions of Calico find no port (kubernetes/kubernetes#125285).
    """
    templates = [one["spec"]["template"] for one in around if one["kind"] in _WORKLOADS]
    chosen = [template for template in templates if labels.items() <= template["metadata"]["labels"].items()]
    if not chosen:
        yield f"no pod has the labels {dict(labels)}"
    there: set[object] = set()
    for pod in (template["spec"] for template in chosen):
        there.update(*map(container_ports, pod["containers"] if by_policy else _containers(pod)))
        there.update(*(container_ports(container).values() for container in _containers(pod)))
    yield from (f"no container has a port {port}" for port in ports if port not in there)


def _there(kind: str, name: str, around: Sequence[Resource]) -> Iterator[str]:
    if not any((one["kind"], one["metadata"]["name"]) == (kind, name) for one in around):
        yield f"there is no {kind} {name}"


def _pod(pod: Resource, claims: Sequence[str], around: Sequence[Resource]) -> Iterator[str]:
    """Yield the mounts, probed ports and accounts of a pod that do not exist."""
    yield from _there("ServiceAccount", pod["serviceAccountName"], around)
    volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
    for volume in volumes.values():
        if "configMap" in volume:
            yield from _there("ConfigMap", volume["configMap"]["name"], around)
    for container in _containers(pod):
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in {*volumes, *claims}:
                yield f"there is no volume {mount['name']}"
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in container and container[probe]["httpGet"]["port"] not in container_ports(container):
                yield f"the {probe} asks at a port that the container does not have"


def _containers(pod: Resource) -> list[Resource]:
    return [*pod.get("initContainers", ()), *pod["containers"]]
