from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["layers", "plain", "reading", "watching", "changes", "reloading"])
def test_modules_of_the_serving_process_do_not_import_pydantic(module: str) -> None:
    code = f"import sys, proxy.settings.{module}; print('pydantic' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert ran.stdout.strip() == "False"
