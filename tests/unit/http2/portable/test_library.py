"""What is used of h2 and hpack that they do not promise, and the two choices of theirs that are changed."""

from __future__ import annotations

import re
from pathlib import Path

import hpack
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.windows import WindowManager
from hpack.table import HeaderTable
from hypothesis import given
from hypothesis import strategies as st

from proxy.http2.policy.compression import MOST_TABLE_OCTETS
from proxy.http2.portable import library

INSTANCES = {
    "H2Connection": H2Connection(H2Configuration()),
    "WindowManager": WindowManager(65_535),
    "Encoder": hpack.Encoder(),
    "HeaderTable": HeaderTable(),
}
ROWS = re.findall(r"^(H2Connection|WindowManager|Encoder|HeaderTable)\.(\w+) +\w", library.__doc__ or "", re.MULTILINE)

LINES = st.lists(
    st.tuples(st.sampled_from([b"x-a", b"accept", b":path", b"x" * 60]), st.binary(max_size=90), st.booleans()),
    max_size=8,
)


def test_the_table_of_library_features_is_parsed() -> None:
    assert len(ROWS) == 14


@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_every_listed_name_exists_in_the_installed_versions(kind: str, name: str) -> None:
    assert hasattr(INSTANCES[kind], name)


def test_no_private_name_is_used() -> None:
    for source in Path(library.__file__).parent.glob("*.py"):
        assert not re.findall(r"(?:h2|header_table|encoder|decoder)\._\w+", source.read_text()), source


@given(st.lists(LINES, max_size=8))
def test_hpack_reads_what_is_encoded(sections: list[list[tuple[bytes, bytes, bool]]]) -> None:
    encoder, decoder = library._Encoder(), hpack.Decoder()
    for section in sections:
        lines = [(hpack.NeverIndexedHeaderTuple if never else hpack.HeaderTuple)(*line) for *line, never in section]
        decoded = decoder.decode(encoder.encode(lines), raw=True)
        assert [(name, value) for name, value in decoded] == [(name, value) for name, value, _ in section]
        assert [not line.indexable for line in decoded] == [never for *_, never in section]


@given(st.lists(st.one_of(LINES, st.integers(0, 5_000)), max_size=12))
def test_hpack_follows_changes_of_the_table(steps: list[list[tuple[bytes, bytes, bool]] | int]) -> None:
    encoder, decoder = library._Encoder(), hpack.Decoder()
    for step in steps:
        if isinstance(step, int):
            decoder.max_allowed_table_size = step
            encoder.resize(step)
        else:
            decoder.decode(encoder.encode([line[:2] for line in step]), raw=True)
            assert decoder.header_table_size == encoder.header_table_size


def test_the_memory_of_the_table_does_not_depend_on_the_peer() -> None:
    encoder = library._Encoder()
    encoder.resize(1 << 30)
    assert encoder.header_table_size == MOST_TABLE_OCTETS
