"""Iterates over a mapping that may change between two steps, because it is read in slices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

__all__ = ["pairs"]

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def pairs(mapping: Mapping[_Key, _Value]) -> Iterator[tuple[_Key, _Value]]:
    """Yield the keys that the mapping has now, with their values, and leave out those that are removed meanwhile.

    Only the keys are copied: thousands of new pairs would make the garbage collector run, and look at the whole heap.
    """
    for key in list(mapping):
        if key in mapping:
            yield key, mapping[key]
