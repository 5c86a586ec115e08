"""`python -m tests.shipping.sbom FILE`: the software bill of materials of a release, in CycloneDX, from the lock file.

It lists what an installation from `requirements.lock` has, with versions, hashes of the files that pip accepts, and the
licenses that the installed packages state; and libnghttp2, which is inside the wheels. The same commit gives the same
document.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from proxy import __version__
from tests.shipping.dist import REPOSITORY, run

__all__ = ["bill_of_materials", "locked_packages"]

NAME: Final = "cloudrun-sidecar"
ENTRY: Final = re.compile(r"(?P<name>[a-z0-9.-]+)==(?P<version>[^ ;]+)(?: ; (?P<marker>.+?))?(?= +--hash=)")
CLASSIFIER: Final = "License :: OSI Approved :: "


def locked_packages() -> Iterator[dict[str, Any]]:
    """Yield a component for each entry of the lock file."""
    for line in (REPOSITORY / "requirements.lock").read_text().replace("\\\n", "").splitlines():
        entry = ENTRY.match(line)
        assert entry is not None, line
        name, version, marker = entry.groups()
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", line)
        properties = [{"name": f"{NAME}:file-sha256", "value": value} for value in hashes]
        properties += [{"name": f"{NAME}:marker", "value": marker.strip()}] if marker else []
        yield {
            "type": "library", "bom-ref": f"pypi/{name}", "name": name, "version": version,
            "purl": f"pkg:pypi/{name}@{version}", "scope": "optional" if marker else "required",
            **stated_license(name), "properties": properties,
        }  # fmt: skip


def stated_license(name: str) -> Mapping[str, Any]:
    """Return the member `licenses` for an installed package, as its metadata states it; nothing if it is unknown."""
    try:
        stated = metadata(name)
    except PackageNotFoundError:
        return {}
    if "License-Expression" in stated:
        return {"licenses": [{"expression": stated["License-Expression"]}]}
    classifiers = stated.get_all("Classifier") or []
    names = [line.removeprefix(CLASSIFIER) for line in classifiers if line.startswith(CLASSIFIER)]
    short = stated["License"].strip() if "License" in stated else ""
    names = names or ([short] if short and "\n" not in short else [])
    return {"licenses": [{"license": {"name": one}} for one in names]} if names else {}


def library() -> dict[str, Any]:
    """Return the component libnghttp2, as `.ci/nghttp2` builds it."""
    pinned = dict(re.findall(r"^(VERSION|SHA256)=(\S+)$", (REPOSITORY / ".ci/nghttp2").read_text(), re.MULTILINE))
    version, digest = pinned["VERSION"], pinned["SHA256"]
    return {
        "type": "library", "bom-ref": "libnghttp2", "name": "libnghttp2", "version": version,
        "description": "inside the wheels, unchanged; the image has that of its distribution",
        "hashes": [{"alg": "SHA-256", "content": digest}], "licenses": [{"license": {"id": "MIT"}}],
        "purl": f"pkg:github/nghttp2/nghttp2@v{version}",
    }  # fmt: skip


def bill_of_materials() -> dict[str, Any]:
    """Return the document for this version, as of the last commit."""
    when = datetime.fromtimestamp(int(run("git", "log", "-1", "--format=%ct", cwd=REPOSITORY)), UTC)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    ours = {
        "type": "application", "bom-ref": NAME, "name": NAME, "version": __version__,
        "description": project["description"], "licenses": [{"expression": project["license"]}],
        "purl": f"pkg:pypi/{NAME}@{__version__}",
    }  # fmt: skip
    components = [*locked_packages(), library()]
    known = {component["bom-ref"] for component in components}
    declared = {f"pypi/{name}" for name in re.findall(r"^[A-Za-z0-9-]+", "\n".join(project["dependencies"]), re.M)}
    document = {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "metadata": {"timestamp": when.strftime("%Y-%m-%dT%H:%M:%SZ"), "component": ours},
        "components": components,
        "dependencies": [{"ref": NAME, "dependsOn": sorted((declared | {"libnghttp2"}) & known)}],
    }  # fmt: skip
    return {"serialNumber": f"urn:uuid:{uuid5(NAMESPACE_URL, json.dumps(document, sort_keys=True))}", **document}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(bill_of_materials(), indent=2, sort_keys=True) + "\n")
