from typing import Final

from proxy.http2.engine import Engine

LIBRARY: Final[str]

class Nghttp2Engine(Engine): ...
