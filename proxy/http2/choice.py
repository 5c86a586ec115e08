"""Which engine: the compiled one where it is there, the portable one otherwise.

`proxy.http2.nghttp2.engine`, once built, has a class `Nghttp2Engine` with the constructor of `PortableEngine`, and
`LIBRARY`, the name and version of what is underneath.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final, NamedTuple, TypeAlias

from proxy.http2.engine import Engine, EngineName

__all__ = ["EngineChoice", "EngineFactory", "EngineUnavailable", "engine_choice"]

_COMPILED: Final = "proxy.http2.nghttp2.engine"
# pip and uv keep a wheel that they have built, and would install the one without the engine again.
_REMEDY: Final = (
    "install a C compiler, libnghttp2-dev and python3-dev, and reinstall cloudrun-sidecar without a cache "
    "(pip: --force-reinstall --no-cache-dir, uv: --reinstall --no-cache), "
    "or choose the engine h2, which needs none of them"
)


class EngineUnavailable(Exception):
    """The engine asked for is not installed; `str()` says how to get it."""


EngineFactory: TypeAlias = type[Engine]
"""Makes one engine for one side of one connection."""


class EngineChoice(NamedTuple):
    """The engine that was chosen, and what to tell the log about it."""

    name: str
    """"h2" or "nghttp2"."""
    library: str
    """Name and version of the library underneath."""
    make: EngineFactory
    """Makes an engine for one connection."""
    reason: str | None
    """Why it is not the fast one although any would have done; None if there is nothing to say."""


def engine_choice(name: EngineName) -> EngineChoice:
    """Return the engine of that name; "auto" prefers the compiled one. Raises EngineUnavailable."""
    if name == "h2":
        return _portable(None)
    try:
        compiled = import_module(_COMPILED)
    except (ImportError, ValueError, KeyError) as exc:
        # It was compiled for other classes than are here: ValueError ("… size changed"), or KeyError ('__pyx_vtable__')
        # where they are interpreted.
        if name == "nghttp2":
            raise EngineUnavailable(f"the HTTP/2 engine nghttp2 cannot be loaded: {_REMEDY}") from exc
        return _portable(f"the faster HTTP/2 engine nghttp2 cannot be loaded: {_REMEDY}")
    return EngineChoice("nghttp2", str(compiled.LIBRARY), compiled.Nghttp2Engine, None)


def _portable(reason: str | None) -> EngineChoice:
    # Here, and not at the top: its code and tables are a MiB and a half that the compiled engine has no use for.
    from proxy.http2.portable.engine import LIBRARY, PortableEngine

    return EngineChoice("h2", LIBRARY, PortableEngine, reason)
