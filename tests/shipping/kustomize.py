"""Renders a kustomization as `kubectl kustomize` does, for the few features that config/kubernetes/ and its page use.

It refuses everything else, so a test that renders with it cannot pass over what it does not know.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from tests.shipping.manifests import Resource, mapping, read

__all__ = ["render"]

FILE: Final = "kustomization.yaml"

_FIELDS: Final = frozenset(
    {"apiVersion", "kind", "namespace", "resources", "generatorOptions", "configMapGenerator", "images", "patches"}
)
_GENERATOR: Final = frozenset({"name", "namespace", "behavior", "files"})
_WITHOUT_NAMESPACE: Final = ("Namespace",)


def render(folder: Path) -> list[Resource]:
    """Return the resources of the kustomization in a folder, namespaces first.

    Raises yaml.YAMLError for what `kubectl` would refuse and for a feature that is not known here, and OSError for a
    missing file.
    """
    found = _render(folder)
    return sorted(found, key=lambda resource: resource["kind"] != "Namespace")


def _render(folder: Path) -> list[Resource]:
    written = mapping(folder / FILE)
    if unknown := written.keys() - _FIELDS:
        raise yaml.YAMLError(f"{folder / FILE}: not known here: {', '.join(sorted(unknown))}")
    if (written.get("apiVersion"), written.get("kind")) != ("kustomize.config.k8s.io/v1beta1", "Kustomization"):
        raise yaml.YAMLError(f"{folder / FILE} is no kustomization")
    resources: list[Resource] = []
    for entry in written.get("resources", ()):
        place = folder / entry
        if not place.is_dir() and not place.resolve().is_relative_to(folder.resolve()):
            raise yaml.YAMLError(f"{folder / FILE}: the file {entry} is outside of its folder")
        resources += _render(place) if place.is_dir() else read(place)
    _generate(folder, written, resources)
    for patch in written.get("patches", ()):
        _patch(folder, patch, resources)
    for resource in resources:
        if "namespace" in written and resource["kind"] not in _WITHOUT_NAMESPACE:
            resource["metadata"]["namespace"] = written["namespace"]
        for container in _containers(resource):
            for image in written.get("images", ()):
                container["image"] = _renamed(container["image"], image)
    return resources


def _generate(folder: Path, written: dict[str, Any], resources: list[Resource]) -> None:
    """Add the ConfigMaps that a kustomization generates, or replace those of its resources."""
    generators = written.get("configMapGenerator", ())
    if generators and written.get("generatorOptions") != {"disableNameSuffixHash": True}:
        raise yaml.YAMLError(f"{folder / FILE}: a name with a hash of the content is not known here")
    for generator in generators:
        behavior = generator.get("behavior", "create")
        if generator.keys() - _GENERATOR or behavior not in ("create", "replace"):
            raise yaml.YAMLError(f"{folder / FILE}: a generator of this kind is not known here: {generator}")
        there = _find({"kind": "ConfigMap", "metadata": generator}, resources)
        if len(there) != (behavior == "replace"):
            raise yaml.YAMLError(
                f"{folder / FILE}: there are {len(there)} ConfigMaps {generator['name']} to {behavior}"
            )
        data = {Path(name).name: (folder / name).read_text() for name in generator["files"]}
        if there:
            there[0]["data"] = data
        else:
            metadata = {"name": generator["name"]}
            resources.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def _patch(folder: Path, patch: dict[str, Any], resources: list[Resource]) -> None:
    """Merge a patch into the resource of its kind and name."""
    change = yaml.safe_load(patch.get("patch", ""))
    if patch.keys() != {"patch"} or not isinstance(change, dict):
        raise yaml.YAMLError(
            f"{folder / FILE}: a patch without a target, written in the file, is all that is known here"
        )
    there = _find(change, resources)
    if not there:
        raise yaml.YAMLError(f"{folder / FILE}: there is no {change['kind']} {change['metadata']['name']} to patch")
    _merge(there[0], change)


def _find(wanted: Resource, resources: list[Resource]) -> list[Resource]:
    """Return the resources with this kind, name and namespace."""
    metadata = wanted["metadata"]
    key = (wanted["kind"], metadata["name"], metadata.get("namespace"))
    return [one for one in resources if (one["kind"], one["metadata"]["name"], one["metadata"].get("namespace")) == key]


def _renamed(reference: str, image: dict[str, str]) -> str:
    """Return an image's reference with the name and tag that `images` gives it."""
    if "@" in reference or image.keys() - {"name", "newName", "newTag"}:
        raise yaml.YAMLError(f"an image with a digest is not known here: {reference}, {image}")
    path, slash, last = reference.rpartition("/")
    name, _, tag = last.partition(":")
    if f"{path}{slash}{name}" != image["name"]:
        return reference
    tag = image.get("newTag", tag)
    return image.get("newName", image["name"]) + (f":{tag}" if tag else "")


def _merge(resource: dict[str, Any], change: dict[str, Any]) -> None:
    """Merge fields. A list is refused: how Kubernetes merges it depends on its schema."""
    for name, value in change.items():
        if isinstance(value, dict) and isinstance(resource.get(name), dict):
            _merge(resource[name], value)
        elif isinstance(value, list):
            raise yaml.YAMLError(f"a patch of the list {name} is not known here")
        else:
            resource[name] = copy.deepcopy(value)


def _containers(resource: Resource) -> Iterator[dict[str, Any]]:
    pod = resource.get("spec", {}).get("template", {}).get("spec", {})
    yield from (*pod.get("initContainers", ()), *pod.get("containers", ()))
