from __future__ import annotations

import asyncio
import gc
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import hypothesis
import pytest

from proxy.compiled import changed_sources
from tests.support.loops import asyncio_loop, fast_loop

TESTS: Final = Path(__file__).parent
OF_OTHER_PROCESSES: Final = frozenset({"e2e", "integration", "isolation"})
"""Folders of tests whose own process has nothing but what the program under test talks to."""

LONG: Final = OF_OTHER_PROCESSES | {"coverage", "load", "readme", "shipping"}
"""Folders of tests that take seconds."""

DECIDES: Final = re.compile(
    r"(_?CLOUDRUN_SIDECAR|CLOUDSDK|GCE|GCLOUD|GOOGLE|LISTEN|OTEL|RESTATE|WATCHDOG)_(?!SERVER$)\w+"
    r"|CI|CLICOLOR|CLICOLOR_FORCE|COLUMNS|FORCE_COLOR|LINES|NOTIFY_SOCKET|NO_COLOR|NO_GCE_CHECK|TTY_COMPATIBLE"
)
"""Variables by which a shell, a CI or a service manager would decide what the program under test does."""

# An example may take longer than hypothesis' 200 ms while other programs use the machine; pytest's timeout is enough.
hypothesis.settings.register_profile("project", deadline=None)
# For runs of the same tests under other conditions: as many examples are tried anyway.
hypothesis.settings.register_profile("few-examples", deadline=None, max_examples=20, derandomize=True)
hypothesis.settings.load_profile("project")


def pytest_configure() -> None:
    """Refuse to test what is not there any more, and forget what the environment says of other things.

    Of a compiled module, the source does not count.
    """
    changed = changed_sources()
    if changed:
        raise pytest.UsageError(f"changed since it was compiled: {', '.join(changed)}; run `make setup`")
    for name in filter(DECIDES.fullmatch, list(os.environ)):
        del os.environ[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that start programs: the last of the short ones end together, and no processor is idle."""
    items.sort(key=lambda item: item.path.relative_to(TESTS).parts[0] not in LONG)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from the thousands of tests themselves: it took a fifth of the time of unit tests."""
    gc.collect()
    gc.freeze()


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run asynchronous tests on a loop of asyncio, unless a folder's own conftest.py says otherwise."""
    folder = item.path.relative_to(TESTS).parts[0]
    return {"asyncio": fast_loop if folder in OF_OTHER_PROCESSES else asyncio_loop}
