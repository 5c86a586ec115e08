"""A stand-in for `kubectl apply -k FOLDER`: validates resources as an API server does, and their references."""

from __future__ import annotations

import yaml

from tests.readme.stand_in import Call, Refused, read
from tests.shipping import kustomize, manifests

__all__ = ["Kubectl"]


class Kubectl:
    """A cluster that accepts valid resources and runs nothing."""

    def __init__(self) -> None:
        self._there: set[tuple[str, str, str]] = set()

    async def do(self, call: Call) -> str:
        """Return one line for each resource of a kustomization; raises Refused with all problems."""
        words, options = read(call.words, valued=("-k",))
        if words != ["apply"] or "-k" not in options:
            raise Refused("`apply -k FOLDER` is all that is known here")
        try:
            resources = kustomize.render(call.folder / options["-k"])
        except (OSError, yaml.YAMLError) as exc:
            raise Refused(str(exc)) from exc
        wrong = [
            f"{version}: {refusal}"
            for version in manifests.VERSIONS
            for resource in resources
            for refusal in manifests.refusals(resource, version)
        ]
        if wrong := wrong or list(manifests.mistakes(resources)):
            raise Refused("\n".join(wrong))
        return "".join(self._applied(resource) for resource in resources)

    def _applied(self, resource: manifests.Resource) -> str:
        kind, metadata = resource["kind"], resource["metadata"]
        key = (kind, metadata.get("namespace", ""), metadata["name"])
        done = "configured" if key in self._there else "created"
        self._there.add(key)
        return f"{kind.lower()}/{metadata['name']} {done}\n"
