from __future__ import annotations

import sys
from pathlib import Path
from sysconfig import get_config_var

from tests.shipping.dist import NO_COMPILER, run, tracked


def test_what_was_compiled_of_older_sources_does_not_stay_where_nothing_can_be_compiled(tmp_path: Path) -> None:
    """Python would import it in the place of the sources, whatever these have become."""
    tree = tracked(tmp_path)
    suffix = get_config_var("EXT_SUFFIX")
    for module in ("http2/nghttp2_engine", "relay/carrier", "restate", "data_path__mypyc"):
        (tree / "proxy" / f"{module}{suffix}").touch()
    said = run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=tree, environment=NO_COMPILER)
    assert "nothing is compiled, and all runs slower" in said
    assert list(tree.glob("proxy/**/*.so")) == []
