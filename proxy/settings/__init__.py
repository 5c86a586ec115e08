"""Settings: TOML file, environment and flags are merged and validated; all problems are reported at once.

* `layers`     the sources of settings: file and environment
* `model`      every setting with its rules; `route` has those of a route, `deployments` those of open routes
* `field_texts` the texts of a setting that help, files and errors have in common
* `validation_errors` pydantic's errors as sentences
* `loading`    merges the layers and validates the result
* `printing`   settings as TOML, the sample file, the JSON Schema
* `plain`      validated settings as plain values, and their JSON form: what a sidecar runs on
* `reading`    all of the above in a process of its own
* `file_state` the state of a file, by which a change is noticed; `watching` notices that it may have changed
* `reloading`  reads the settings again, when their file has changed or on request
* `changes`    what new settings change, and what of it needs a restart

Names are the same everywhere: `--drain-timeout`, `CLOUDRUN_SIDECAR_DRAIN_TIMEOUT`, `drain_timeout`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.settings.layers import Problem, SettingsInvalid

if TYPE_CHECKING:
    from proxy.settings.loading import Loaded, load, load_traced
    from proxy.settings.model import RouteSettings, Settings
    from proxy.settings.plain import PlainSettings
    from proxy.settings.printing import dump_toml, json_schema

__all__ = [
    "Loaded",
    "PlainSettings",
    "Problem",
    "RouteSettings",
    "Settings",
    "SettingsInvalid",
    "dump_toml",
    "json_schema",
    "load",
    "load_traced",
]

_ON_DEMAND = {
    "Loaded": "loading",
    "load": "loading",
    "load_traced": "loading",
    "PlainSettings": "plain",
    "RouteSettings": "model",
    "Settings": "model",
    "dump_toml": "printing",
    "json_schema": "printing",
}


def __getattr__(name: str) -> Any:
    """Import names of modules that need pydantic at their first use.

    The health check of an image without a shell starts a process every few seconds. It needs only `layers`; with
    pydantic it would take three times as long. A process that serves needs only `plain` and `reading`.
    """
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_ON_DEMAND[name]}"), name)
