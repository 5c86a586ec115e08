"""What a worker imports, without what it would keep in memory and never use.

aiohttp makes two TLS contexts when it is imported, each with all certification authorities of the system, for callers
that bring none of their own: 2 MiB. `tokens.http_client`, the only caller in a worker, brings its own. Used by mistake,
the default one would refuse every server. The compiled part of frozenlist, of which aiohttp makes some
lists when it starts, is all that needs the library of C++: 1 MiB.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["lean_imports"]


@contextmanager
def lean_imports() -> Iterator[None]:
    """Have what is imported meanwhile read no certification authorities, and load no compiled frozenlist.

    It is said in the process's environment, which is as before afterwards.
    """
    paths = ssl.get_default_verify_paths()
    meanwhile = {
        paths.openssl_cafile_env: os.devnull,
        paths.openssl_capath_env: os.devnull,
        "FROZENLIST_NO_EXTENSIONS": "1",
    }
    before = {name: os.environ.get(name) for name in meanwhile}
    os.environ.update(meanwhile)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
