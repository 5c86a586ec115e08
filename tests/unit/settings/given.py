"""Writes settings files to the working directory, and loads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from proxy.settings.layers import SettingsInvalid
from proxy.settings.loading import load
from proxy.settings.model import Settings
from tests.support.signing_restate import SigningKey

URL = "https://svc.run.app"
ACCOUNT = "invoker@project.iam.gserviceaccount.com"
KEY, OTHER_KEY = SigningKey(b"one").public, SigningKey(b"other").public


def write(text: str, name: str = "my.toml") -> Path:
    """Write a file, and return its relative path."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def upstream(**flags: Any) -> Settings:
    """Load flags together with one upstream."""
    return load(None, {}, {"upstream": URL, **flags}).settings


def problems(toml: str | None = None, environment: Mapping[str, str] | None = None, /, **flags: Any) -> dict[str, str]:
    """Load settings that must be refused, and return the problems by place."""
    with pytest.raises(SettingsInvalid) as invalid:
        load(None if toml is None else write(toml), environment or {}, flags)
    found = {problem.where: problem.what for problem in invalid.value.problems}
    assert len(found) == len(invalid.value.problems), "one place is named twice"
    return found
