"""After a reload, no part of a worker has the values of before."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from types import GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any, Final, get_type_hints

import pytest

from proxy.settings.changes import RELOADABLE
from proxy.settings.plain import PlainSettings
from proxy.worker import Worker
from tests.support.settings import plain_settings

READ_WHEN_USED: Final = {"drain_timeout"}
"""Settings that are read from the settings themselves."""


def marked(first: int) -> dict[str, Any]:
    """Return values of the reloadable settings that nothing else has: numbers from `first` on, and a host name."""
    values: dict[str, Any] = {"allowed_hosts": (f"{first}.example",)}
    hints = get_type_hints(PlainSettings)
    for number, field in enumerate(fields(PlainSettings), first):
        if field.name in RELOADABLE and hints[field.name] in (int, float):
            values[field.name] = hints[field.name](number) + (0.125 if hints[field.name] is float else 0)
    return values


def parts(thing: object) -> Iterator[object]:
    """Yield what an object consists of: items, attributes, what a function is bound to."""
    if isinstance(thing, PlainSettings | ModuleType | type | asyncio.AbstractEventLoop):
        return
    if isinstance(thing, Mapping):
        yield from thing.values()
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from thing
    slots = GetSetDescriptorType | MemberDescriptorType
    names = {name for kind in type(thing).__mro__ for name, of in vars(kind).items() if isinstance(of, slots)}
    names = {name for name in {*names, *getattr(thing, "__dict__", {})} if not name.startswith("__")}
    for name in {*names, "__self__"}:
        with contextlib.suppress(Exception):  # it is not set, or not to be read now
            yield getattr(thing, name)
    for cell in getattr(thing, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # it is empty
            yield cell.cell_contents


def found_in(root: object, values: Mapping[str, Any]) -> set[str]:
    """Return the names of the values that are anywhere below an object."""
    names = {one: name for name, value in values.items() for one in (value if isinstance(value, tuple) else (value,))}
    found: set[str] = set()
    seen: dict[int, object] = {}
    rest = [root]
    while rest:
        thing = rest.pop()
        if isinstance(thing, int | float | str):
            found |= {names[thing]} if thing in names else set()
        elif id(thing) not in seen:
            seen[id(thing)] = thing
            rest += parts(thing)
    return found


@pytest.mark.asyncio
async def test_every_number_and_host_name_is_replaced_wherever_it_is_kept() -> None:
    before, after = marked(7_000_000), marked(8_000_000)
    worker = Worker(replace(plain_settings(), **before), asyncio.get_running_loop(), b"cloudrun-sidecar-0")
    try:
        assert found_in(worker, before) == before.keys() - READ_WHEN_USED
        worker.apply(replace(plain_settings(), **after))
        assert found_in(worker, before) == set()
        assert found_in(worker, after) == after.keys() - READ_WHEN_USED
    finally:
        await worker.close()
