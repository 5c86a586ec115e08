from __future__ import annotations

import pkgutil
import tomllib
from pathlib import Path

import proxy

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


def test_the_contract_forbids_the_emulator_every_other_module_of_the_package() -> None:
    contracts = tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [contract for contract in contracts if contract.get("source_modules") == ["proxy.emulator"]]
    modules = {f"proxy.{module.name}" for module in pkgutil.iter_modules(proxy.__path__)}
    assert set(contract["forbidden_modules"]) == modules - {"proxy.emulator"}
