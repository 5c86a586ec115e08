from __future__ import annotations

import ast
import json
import os
import re
import sys
from pathlib import Path
from sysconfig import get_config_var

import pytest

from tests.shipping.dist import NO_COMPILER, run, tracked

# Records its command line, and writes an empty file in place of the compiled one.
COMPILER = """#!{python}
import sys
from pathlib import Path
with Path({log!r}).open("a") as log:
    log.write(repr(sys.argv[1:]) + chr(10))
if "-o" in sys.argv:
    Path(sys.argv[sys.argv.index("-o") + 1]).touch()
"""


def build(tree: Path, environment: dict[str, str]) -> str:
    return run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=tree, environment=environment)


def compiler(folder: Path) -> tuple[dict[str, str], Path]:
    """An environment with a compiler that only records its command lines, and the file with them."""
    log, program = folder / "commands", folder / "cc"
    program.write_text(COMPILER.format(python=sys.executable, log=str(log)))
    program.chmod(0o755)
    return {"CC": str(program), "LDSHARED": f"{program} -shared"}, log


def commands(log: Path) -> list[list[str]]:
    """The commands that compile a module, without the one that probes the compiler."""
    lines = [eval(line) for line in log.read_text().splitlines()] if log.exists() else []
    log.unlink(missing_ok=True)
    return [line for line in lines if "-c" in line and not any(word.endswith("probe.c") for word in line)]


def engine_modules(tree: Path) -> set[str]:
    """The names of the modules of the compiled engine: its own, and those of the seam."""
    seam = re.search(r"^SEAM = (\(.+?\))$", (tree / "setup.py").read_text(), re.MULTILINE | re.DOTALL)
    assert seam
    own = (tree / "proxy/http2/nghttp2").glob("*.pyx")
    return {path.stem for path in [*own, *map(Path, ast.literal_eval(seam[1]))]}


def test_outdated_compiled_modules_are_removed_without_a_compiler(tmp_path: Path) -> None:
    """Otherwise Python would import it instead of the newer sources."""
    tree = tracked(tmp_path)
    suffix = get_config_var("EXT_SUFFIX")
    for module in ("http2/nghttp2/engine", "relay/exchange", "restate", "relay/carrier"):
        (tree / "proxy" / f"{module}{suffix}").touch()
    said = build(tree, NO_COMPILER)
    assert "nothing is compiled, and all runs slower" in said
    assert list(tree.glob("proxy/**/*.so")) == []
    assert not (tree / "proxy/compiled.json").exists()


@pytest.mark.parametrize("flags", ["-O0 -g", ""])
def test_it_is_optimised_for_any_flags_of_the_environment(tmp_path: Path, flags: str) -> None:
    tree = tracked(tmp_path)
    environment, log = compiler(tmp_path)
    build(tree, {**environment, "CFLAGS": flags, "CLOUDRUN_SIDECAR_BUILD": "engine"})
    compiled = commands(log)
    assert {Path(word).stem for command in compiled for word in command if word.endswith(".c")} == engine_modules(tree)
    for command in compiled:
        levels = [word for word in command if word.startswith("-O")]
        assert levels[-1] == "-O3"
        assert "-DNDEBUG" in command
        assert "-fwrapv" in command


def test_only_changed_sources_are_compiled_again(tmp_path: Path) -> None:
    tree = tracked(tmp_path)
    environment, log = compiler(tmp_path)
    environment["CLOUDRUN_SIDECAR_BUILD"] = "engine"
    build(tree, environment)
    commands(log)
    build(tree, environment)
    assert commands(log) == []
    source = tree / "proxy/http2/nghttp2/outbox.pxi"
    source.write_text(source.read_text() + "\nCHANGED = 47110815\n")
    os.utime(source, (0, 0))  # as a file that was copied with its time
    build(tree, environment)
    (command,) = commands(log)
    (compiled,) = (word for word in command if word.endswith("nghttp2/engine.c"))
    assert "47110815" in (tree / compiled).read_text()
    recorded = json.loads((tree / "proxy/compiled.json").read_text())
    assert "proxy/http2/nghttp2/outbox.pxi" in recorded["files"]


def test_nothing_is_compiled_if_the_variable_says_none(tmp_path: Path) -> None:
    tree = tracked(tmp_path)
    environment, log = compiler(tmp_path)
    build(tree, {**environment, "CLOUDRUN_SIDECAR_BUILD": "none"})
    assert commands(log) == []


def test_a_wheel_has_nothing_of_an_earlier_build_of_other_sources(tmp_path: Path) -> None:
    """Otherwise `pip install .` in a clone that has been updated would install modules that are gone."""
    tree = tracked(tmp_path)
    environment, _ = compiler(tmp_path)
    package = tree / "proxy/became_a_module"
    package.mkdir()
    (package / "__init__.py").touch()

    def built(choice: str) -> set[str]:
        run(
            sys.executable, "setup.py", "build", cwd=tree, environment={**environment, "CLOUDRUN_SIDECAR_BUILD": choice}
        )
        (library,) = (tree / "build").glob("lib*")
        return {str(path.relative_to(library)) for path in library.rglob("*") if path.is_file()}

    suffix = get_config_var("EXT_SUFFIX")
    everything = built("all")
    assert {"proxy/became_a_module/__init__.py", "proxy/compiled.json", f"proxy/relay/exchange{suffix}"} <= everything
    (package / "__init__.py").unlink()
    (tree / "proxy/became_a_module.py").touch()
    engine = built("engine")
    assert {"proxy/became_a_module.py", "proxy/compiled.json", f"proxy/http2/nghttp2/engine{suffix}"} <= engine
    assert not {"proxy/became_a_module/__init__.py", f"proxy/relay/exchange{suffix}"} & engine
    nothing = built("none")
    assert not any(name.endswith(".so") or name == "proxy/compiled.json" for name in nothing)
    assert {name for name in everything if name.endswith(".py")} - {"proxy/became_a_module/__init__.py"} <= nothing


def test_an_invalid_choice_is_named(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="CLOUDRUN_SIDECAR_BUILD must be one of none, engine, all; it is 'some'"):
        build(tracked(tmp_path), {"CLOUDRUN_SIDECAR_BUILD": "some"})
