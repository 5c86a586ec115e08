"""Modules as their source has them, beside the compiled ones that are imported."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

__all__ = ["interpreted"]

_REPOSITORY = Path(__file__).parents[2]


def interpreted(name: str) -> ModuleType:
    """Return a new module, none of `sys.modules`, from the source of `name`, whether or not that is compiled."""
    source = _REPOSITORY / f"{name.replace('.', '/')}.py"
    spec = spec_from_loader(name, SourceFileLoader(name, str(source)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
