from __future__ import annotations

import pytest
from hpack.exceptions import HPACKDecodingError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.http2.huffman import huffman_decoder

decode = huffman_decoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
encode = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode


@given(st.binary(max_size=200))
def test_what_hpack_encodes_is_decoded(text: bytes) -> None:
    assert decode(encode(text)) == text


def test_every_octet_has_a_code() -> None:
    text = bytes(range(256)) * 3
    assert decode(encode(text)) == text


@given(st.binary(max_size=40))
@example(b"")
@example(b"\xff")
@example(b"\x1f\xff")
@example(b"\xff\xff\xff\xff")
@example(b"\xff\xff\xff\xfc")
def test_any_octets_mean_what_they_mean_to_hpack(coded: bytes) -> None:
    try:
        expected = decode_huffman(coded)
    except HPACKDecodingError:
        with pytest.raises(ValueError, match="string"):
            decode(coded)
    else:
        assert decode(coded) == expected
