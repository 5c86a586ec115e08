"""Keys and values of a mapping that may change while they are read in slices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

__all__ = ["pairs"]

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def pairs(mapping: Mapping[_Key, _Value]) -> Iterator[tuple[_Key, _Value]]:
    """Yield what the mapping has now, without what is removed meanwhile.

    Only the keys are copied: of thousands of pairs at once, the garbage collector looks at each, and then, because they
    are many, at all that there is.
    """
    for key in list(mapping):
        if key in mapping:
            yield key, mapping[key]
