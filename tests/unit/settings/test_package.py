from __future__ import annotations

import subprocess
import sys

import pytest

import proxy.settings


def test_every_exported_name_can_be_imported() -> None:
    for name in proxy.settings.__all__:
        assert getattr(proxy.settings, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'else'"):
        getattr(proxy.settings, "else")


@pytest.mark.parametrize("module", ["layers", "plain", "reading", "watching", "changes", "reloading"])
def test_modules_of_the_serving_process_do_not_import_pydantic(module: str) -> None:
    code = f"import sys, proxy.settings.{module}; print('pydantic' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert ran.stdout.strip() == "False"
