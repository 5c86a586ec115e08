from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest

from proxy.http2 import choice
from proxy.http2.choice import EngineFactory, EngineUnavailable, engine_choice
from proxy.http2.engine import EngineName, Limits
from proxy.http2.portable.engine import PortableEngine
from tests.support.peers.engines import Handler

COMPILED = "proxy.http2.nghttp2.engine"


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, COMPILED, None)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> EngineFactory:
    module = ModuleType(COMPILED)

    class Nghttp2Engine(PortableEngine):
        name = "nghttp2"

    vars(module).update(LIBRARY="libnghttp2 1.52.0", Nghttp2Engine=Nghttp2Engine)
    monkeypatch.setitem(sys.modules, COMPILED, module)
    return Nghttp2Engine


def test_h2_is_chosen_by_name_without_a_reason(absent: None) -> None:
    chosen = engine_choice("h2")
    assert (chosen.name, chosen.make, chosen.reason) == ("h2", PortableEngine, None)
    assert chosen.library.startswith("h2 4.")


def test_auto_chooses_h2_without_the_compiled_engine_and_says_why(absent: None) -> None:
    chosen = engine_choice("auto")
    assert (chosen.name, chosen.make) == ("h2", PortableEngine)
    assert chosen.reason is not None
    # What the build needs, and what makes pip and uv build it again.
    for needed in ("C compiler", "libnghttp2-dev", "python3-dev", "--no-cache-dir", "--no-cache)"):
        assert needed in chosen.reason


def test_nghttp2_without_the_compiled_engine_is_an_error_with_a_remedy(absent: None) -> None:
    with pytest.raises(EngineUnavailable, match="libnghttp2-dev"):
        engine_choice("nghttp2")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("proxy.http2.engine.Engine size changed, may indicate binary incompatibility"),
        KeyError("__pyx_vtable__"),
    ],
    ids=["other classes", "interpreted classes"],
)
def test_an_engine_compiled_for_other_classes_counts_as_absent(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(choice, "import_module", load)
    assert engine_choice("auto").make is PortableEngine
    with pytest.raises(EngineUnavailable, match="libnghttp2-dev"):
        engine_choice("nghttp2")
    assert importlib.import_module is not load


@pytest.mark.parametrize("name", ["auto", "nghttp2"])
def test_auto_chooses_the_compiled_engine_if_it_is_there(compiled: EngineFactory, name: EngineName) -> None:
    chosen = engine_choice(name)
    assert chosen.make is compiled
    assert (chosen.name, chosen.library, chosen.reason) == ("nghttp2", "libnghttp2 1.52.0", None)


def test_h2_is_chosen_by_name_even_beside_the_compiled_engine(compiled: EngineFactory) -> None:
    assert engine_choice("h2").make is PortableEngine


@pytest.mark.parametrize("client", [True, False])
def test_the_choice_makes_engines(absent: None, client: bool) -> None:
    engine = engine_choice("auto").make(client=client, limits=Limits(), handler=Handler())
    assert isinstance(engine, PortableEngine)
    assert engine.wants_to_send()
