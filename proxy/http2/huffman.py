"""Huffman decoding of field strings (RFC 7541, 5.2), an octet a step.

A state is a place in the code tree; what an octet does in a state is worked out when it first happens and kept. hpack
walks its tables half an octet a step, at nearly four times the cost. All steps there can be take some 8 MiB, once a
process; the strings of ordinary heads need a few hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

__all__ = ["huffman_decoder"]

_END_OF_STRING = 256
_Node: TypeAlias = "list[_Node | int]"


class _State(dict[int, "tuple[_State, bytes]"]):
    """What each octet leads to from here: the next state, and the symbols completed on the way."""

    def __init__(self, node: _Node, tree: _Tree) -> None:
        super().__init__()
        self._node = node
        self._tree = tree
        self.may_end = tree.is_padding(node)

    def __missing__(self, octet: int) -> tuple[_State, bytes]:
        node = self._node
        symbols = bytearray()
        for bit in range(7, -1, -1):
            step = node[octet >> bit & 1]
            if isinstance(step, list):
                node = step
            elif step == _END_OF_STRING:
                raise ValueError("a string holds the end-of-string symbol")
            else:
                symbols.append(step)
                node = self._tree.root
        result = self._tree.state(node), bytes(symbols)
        self[octet] = result
        return result


class _Tree:
    def __init__(self, codes: Sequence[int], lengths: Sequence[int]) -> None:
        self.root: _Node = [[], []]
        for symbol, (code, length) in enumerate(zip(codes, lengths, strict=True)):
            node = self.root
            for bit in range(length - 1, 0, -1):
                step = node[code >> bit & 1]
                assert isinstance(step, list)  # noqa: S101  (a prefix code: no code runs through a symbol)
                if not step:
                    step += [[], []]
                node = step
            node[code & 1] = symbol
        self._states: dict[int, _State] = {}
        self._padding = [self.root]
        for _ in range(7):
            step = self._padding[-1][1]
            assert isinstance(step, list)  # noqa: S101  (the code of all ones, end-of-string, has 30 bits)
            self._padding.append(step)

    def is_padding(self, node: _Node) -> bool:
        """Whether a string may end here: after at most seven bits, all of them ones."""
        return any(node is place for place in self._padding)

    def state(self, node: _Node) -> _State:
        state = self._states.get(id(node))
        if state is None:
            state = self._states[id(node)] = _State(node, self)
        return state


def huffman_decoder(codes: Sequence[int], lengths: Sequence[int]) -> Callable[[bytes], bytes]:
    """Return a function that decodes one string; it raises ValueError where the string is not well formed.

    `codes` and `lengths` (in bits) are those of RFC 7541, appendix B, by symbol; the last is the end-of-string symbol.
    """
    tree = _Tree(codes, lengths)
    start = tree.state(tree.root)

    def decode(text: bytes) -> bytes:
        state = start
        symbols: list[bytes] = []
        for octet in text:
            state, found = state[octet]
            symbols.append(found)
        if not state.may_end:
            raise ValueError("a string is not padded with the first bits of the end-of-string symbol")
        return b"".join(symbols)

    return decode
