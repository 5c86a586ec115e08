"""Checks the syntax of HTTP/1.1 requests before another parser sees them (RFC 9112). Pure.

If two parsers disagree about the end of a request, a second request can be smuggled past the first parser; here both
would be signed. h11, which parses after this module, is lenient in places: it accepts a bare LF as the end of a line,
joins folded lines, and lets `Transfer-Encoding` override `Content-Length`. So an ambiguous request is refused here, and
the connection is closed. All others are written again in a form that every parser reads alike: origin-form target,
CRLF, no folding, no chunk extensions, no trailers, no `Upgrade`. Small chunks that came together are joined: each would
cost as much behind this module as a large one.

::

    HEAD ──content-length──▶ CONTENT ─────────────────────────────────▶ HEAD
      ├────chunked──▶ CHUNK_SIZE ──▶ CHUNK_DATA ──▶ CHUNK_END ─▶ CHUNK_SIZE
      │                    └──0──▶ TRAILERS ──────────────────────────▶ HEAD
      └────neither─────────────────────────────────────────────────────▶ HEAD

    any of them ──fault──▶ REFUSED, the final state

No reason quotes the request.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, NamedTuple

from proxy.downstream.hosts import Authority, HostRules, parse_authority

__all__ = ["Fault", "RequestSyntax"]

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_REQUEST_LINE: Final = re.compile(rb"(" + _TOKEN.pattern + rb") ([!-~]+) HTTP/([0-9])\.([0-9])")
_ABSOLUTE_FORM: Final = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?]*)(.*)")
_CHUNK_SIZE: Final = re.compile(
    rb"([0-9A-Fa-f]{1,16})"
    rb'((?:[ \t]*;[ \t]*%(token)s(?:[ \t]*=[ \t]*(?:%(token)s|"(?:[^"\\]|\\.)*"))?)*)' % {b"token": _TOKEN.pattern}
)

# A line ends only with CRLF, and the only control character in it is HTAB. RFC 9112, 2.2 permits a bare LF, and
# RFC 9110, 5.5 most control characters; smuggling uses both. A CR at the end of the buffer may still be followed by LF.
_FORBIDDEN: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)")
_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)+")

_END_OF_LINE: Final = b"\r\n"
_END_OF_SECTION: Final = b"\r\n\r\n"

_FIELD_OVERHEAD_OCTETS: Final = 32
"""Added for each field line, as in HTTP/2 (RFC 9113, 6.5.2), so that `max_field_section` means the same in both."""

_LONGEST_CHUNK_LINE: Final = 1_024
_SMALL_CHUNK: Final = 1_024
"""Chunks of up to so many octets are joined with their neighbours."""
_MOST_LENGTH_DIGITS: Final = 18
_GREATEST_CHUNK: Final = 10**_MOST_LENGTH_DIGITS


class Fault(NamedTuple):
    """Why a request is refused."""

    status: int
    """HTTP status of the answer."""
    text: str
    """The reason, which does not quote the request."""


class _Refused(Exception):
    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.fault = Fault(status, text)


class _State(Enum):
    """What the parser expects next."""

    HEAD = auto()
    CONTENT = auto()
    CHUNK_SIZE = auto()
    CHUNK_DATA = auto()
    CHUNK_END = auto()
    TRAILERS = auto()
    REFUSED = auto()


class RequestSyntax:
    """Checks the requests of one connection, one after the other."""

    def __init__(self, rules: HostRules, max_head_octets: int) -> None:
        self.fault: Fault | None = None
        """Why the connection must be closed. Requests that `feed` returned before are still answered."""
        self._rules = rules
        self._max_head_octets = max_head_octets
        self._state = _State.HEAD
        self._buffer = bytearray()
        self._checked_octets = 0  # of the buffer, checked for forbidden characters
        self._request_line_checked = False
        self._content_octets = 0  # expected, of content or of a chunk
        self._joined = bytearray()  # content of small chunks
        self._steps: dict[_State, Callable[[], bytes | None]] = {
            _State.HEAD: self._head,
            _State.CONTENT: self._content,
            _State.CHUNK_SIZE: self._chunk_size,
            _State.CHUNK_DATA: self._content,
            _State.CHUNK_END: self._chunk_end,
            _State.TRAILERS: self._trailers,
            _State.REFUSED: self._discard,
        }

    @property
    def head_incomplete(self) -> bool:
        """True if a part of a request's head was received, but not all of it."""
        return self._state is _State.HEAD and bool(self._buffer)

    def feed(self, data: bytes) -> bytes:
        """Add received data; return the octets that were checked and may be parsed. Heads are returned whole.

        A malformed request sets `fault`; from then on nothing is returned.
        """
        self._buffer += data
        passed: list[bytes] = []
        try:
            while (octets := self._steps[self._state]()) is not None:
                if octets:
                    passed += (self._joined_chunk(), octets)
        except _Refused as refused:
            self.fault = refused.fault
            self._state = _State.REFUSED
            self._buffer.clear()
        passed.append(self._joined_chunk())
        return b"".join(passed)

    def feed_eof(self) -> None:
        """Note the end of the data; sets `fault` if a head is incomplete."""
        if self.head_incomplete:
            self.fault = Fault(400, "the connection was closed before the head of the request was complete")
            self._state = _State.REFUSED
            self._buffer.clear()

    def _joined_chunk(self) -> bytes:
        """Return the small chunks that have been joined as one, and forget them; b"" if there are none."""
        if not self._joined:
            return b""
        chunk = b"%x\r\n%s\r\n" % (len(self._joined), self._joined)
        self._joined.clear()
        return chunk

    # ---- the steps: each returns checked octets, which may be none yet, or None if it needs more data

    def _discard(self) -> None:
        self._buffer.clear()

    def _head(self) -> bytes | None:
        if empty := _EMPTY_LINES.match(self._buffer):  # RFC 9112, 2.2
            self._take(empty.end())
        end = self._end_of_section()
        if not self._request_line_checked:
            end_of_line = self._buffer.find(_END_OF_LINE)
            if (len(self._buffer) if end_of_line < 0 else end_of_line) > self._max_head_octets:
                raise _Refused("the request line is longer than max_field_section", 414)
            if end_of_line < 0:
                return None
            self._check_request_line(bytes(self._buffer[:end_of_line]))
            self._request_line_checked = True
        head = self._section(end, "the head of the request")
        if head is None:
            return None
        self._request_line_checked = False
        return self._checked_head(head)

    def _content(self) -> bytes | None:
        if not self._buffer:
            return None
        data = bytes(self._buffer[: self._content_octets])
        self._take(len(data))
        self._content_octets -= len(data)
        if not self._content_octets:
            self._state = _State.HEAD if self._state is _State.CONTENT else _State.CHUNK_END
        return data

    def _chunk_size(self) -> bytes | None:
        line = self._line("a chunk's size")
        if line is None:
            return None
        found = _CHUNK_SIZE.fullmatch(line)
        if found is None:
            raise _Refused("a chunk's size is not a hexadecimal number (RFC 9112, 7.1)")
        octets = int(found[1], 16)
        if octets > _GREATEST_CHUNK:
            raise _Refused("a chunk is too large")
        if 0 < octets <= _SMALL_CHUNK and self._buffer.startswith(_END_OF_LINE, octets):
            self._joined += self._buffer[:octets]
            self._take(octets + len(_END_OF_LINE))
            return b""
        self._content_octets = octets
        self._state = _State.CHUNK_DATA if octets else _State.TRAILERS
        return b"%x\r\n" % octets

    def _chunk_end(self) -> bytes | None:
        if len(self._buffer) < len(_END_OF_LINE) and _END_OF_LINE.startswith(self._buffer):
            return None
        if not self._buffer.startswith(_END_OF_LINE):
            raise _Refused("a chunk is longer than its size (RFC 9112, 7.1)")
        self._take(len(_END_OF_LINE))
        self._state = _State.CHUNK_SIZE
        return _END_OF_LINE

    def _trailers(self) -> bytes | None:
        """Check the trailer section, and drop it: ASGI has no trailers for requests."""
        if self._buffer.startswith(_END_OF_LINE):
            self._take(len(_END_OF_LINE))
        else:
            section = self._section(self._end_of_section(), "the trailer section")
            if section is None:
                return None
            _field_lines(section.split(_END_OF_LINE))
        self._state = _State.HEAD
        return _END_OF_LINE

    # ---- the buffer

    def _take(self, octets: int) -> None:
        del self._buffer[:octets]
        self._checked_octets = max(0, self._checked_octets - octets)

    def _end_of_section(self) -> int:
        """Return the index of the end of the section at the beginning of the buffer; -1 if it is incomplete.

        Refuses forbidden characters at once, without waiting for the end of the section.
        """
        seen = self._checked_octets
        end = self._buffer.find(_END_OF_SECTION, max(0, seen - 3))
        until = len(self._buffer) if end < 0 else end + len(_END_OF_SECTION)
        if _FORBIDDEN.search(self._buffer if end < 0 else self._buffer[:until], max(0, seen - 1)):
            raise _Refused("a control character, or a line that does not end with CRLF (RFC 9112, 2.2)")
        self._checked_octets = until
        return end

    def _line(self, what: str) -> bytes | None:
        """Take one line from the buffer, without its CRLF; None if it is incomplete."""
        end = self._buffer.find(_END_OF_LINE, 0, _LONGEST_CHUNK_LINE)
        line = bytes(self._buffer[:end] if end >= 0 else self._buffer[:_LONGEST_CHUNK_LINE])
        if _FORBIDDEN.search(line):
            raise _Refused(f"{what} has a control character, or a line that does not end with CRLF")
        if end < 0:
            if len(self._buffer) >= _LONGEST_CHUNK_LINE:
                raise _Refused(f"the line of {what} is too long")
            return None
        self._take(end + len(_END_OF_LINE))
        return line

    def _section(self, end: int, what: str) -> bytes | None:
        """Take a section of lines, and the empty line after it, from the buffer; None if `end` is -1."""
        if (len(self._buffer) if end < 0 else end) > self._max_head_octets:
            raise _Refused(f"{what} is longer than max_field_section", 431)
        if end < 0:
            return None
        section = bytes(self._buffer[:end])
        self._take(end + len(_END_OF_SECTION))
        return section

    # ---- the head

    def _check_request_line(self, line: bytes) -> None:
        found = _REQUEST_LINE.fullmatch(line)
        if found is None:
            raise _Refused("the first line is not METHOD TARGET HTTP/1.1 with single spaces (RFC 9112, 3)")
        if found[3] != b"1" or found[4] not in b"01":
            raise _Refused("the version is not HTTP/1.0, HTTP/1.1 or HTTP/2 with prior knowledge", 505)

    def _checked_head(self, head: bytes) -> bytes:
        """Return the head as it is passed on; sets the next state."""
        request_line, *lines = head.split(_END_OF_LINE)
        method, target, version = request_line.split(b" ")
        fields = _field_lines(lines)
        octets = len(target) + sum(len(name) + len(value) + _FIELD_OVERHEAD_OCTETS for name, _, value in fields)
        if octets > self._max_head_octets:
            raise _Refused("the head of the request is longer than max_field_section", 431)
        legacy = version == b"HTTP/1.0"
        hosts = [value for _, name, value in fields if name == b"host"]
        host = _host(hosts, legacy=legacy)
        target, authority = self._origin_form(method, target, host)
        self._state, self._content_octets = _framing(fields, legacy=legacy)
        written = [b"%s %s %s\r\n" % (method, target, version)]
        if authority is not None:
            written.append(b"host: %s\r\n" % authority)
        for name, lowered, value in fields:
            if lowered == b"upgrade" or (lowered == b"host" and authority is not None):
                continue
            written.append(b"%s: %s\r\n" % (name, value))
        written.append(_END_OF_LINE)
        return b"".join(written)

    def _origin_form(self, method: bytes, target: bytes, host: Authority | None) -> tuple[bytes, bytes | None]:
        """Return the target in origin form, and the authority of an absolute-form target (RFC 9112, 3.2)."""
        if b"#" in target:
            raise _Refused("the target has a fragment, which is never sent (RFC 9110, 7.1)")
        if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS") or method == b"CONNECT":
            return target, None
        found = _ABSOLUTE_FORM.fullmatch(target)
        if found is None:
            raise _Refused("the target is neither a path that begins with / nor a URL (RFC 9112, 3.2)")
        scheme, authority, rest = found.groups()
        try:
            named = parse_authority(authority)
        except ValueError as exc:
            raise _Refused(f"the authority of the URL in the request line {exc}") from None
        if scheme.lower() != b"http" or not self._rules.is_own(named, host):
            raise _Refused(
                "the URL in the request line is not of this server, which is not a forward proxy: "
                "use the name that is in Host, or list the name in allowed_hosts"
            )
        return rest if rest.startswith(b"/") else b"/" + rest, authority


def _field_lines(lines: list[bytes]) -> list[tuple[bytes, bytes, bytes]]:
    """Return name, name in lower case, and value of each line (RFC 9112, 5)."""
    fields: list[tuple[bytes, bytes, bytes]] = []
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            raise _Refused("a field line is folded, or begins with white space (RFC 9112, 5.2)")
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name):
            raise _Refused("a field line is not NAME: VALUE, with the colon directly after the name (RFC 9112, 5.1)")
        fields.append((name, name.lower(), value.strip(b" \t")))
    return fields


def _host(hosts: list[bytes], *, legacy: bool) -> Authority | None:
    """Return the authority in `Host`; None if it is empty, or missing in HTTP/1.0 (RFC 9112, 3.2)."""
    if len(hosts) > 1:
        raise _Refused("Host occurs more than once")
    if not hosts and not legacy:
        raise _Refused("Host is missing")
    if not hosts or not hosts[0]:
        return None
    try:
        return parse_authority(hosts[0])
    except ValueError as exc:
        raise _Refused(f"Host {exc}") from None


def _framing(fields: list[tuple[bytes, bytes, bytes]], *, legacy: bool) -> tuple[_State, int]:
    """Return the state after the head, and the length of the content (RFC 9112, 6)."""
    lengths = [value for _, name, value in fields if name == b"content-length"]
    codings = [value for _, name, value in fields if name == b"transfer-encoding"]
    if codings:
        if legacy:
            raise _Refused("Transfer-Encoding is not defined for HTTP/1.0 (RFC 9112, 6.1)")
        if lengths:
            raise _Refused("both Content-Length and Transfer-Encoding occur (RFC 9112, 6.1)")
        names = [name.strip(b" \t").lower() for name in b",".join(codings).split(b",")]
        if names == [b"chunked"]:
            return _State.CHUNK_SIZE, 0
        if names[-1] != b"chunked" or names.count(b"chunked") > 1 or b"" in names:
            raise _Refused("the last Transfer-Encoding is not chunked, or chunked occurs more than once")
        raise _Refused("a Transfer-Encoding other than chunked is not supported", 501)
    if not lengths:
        return _State.HEAD, 0
    if len(lengths) > 1:
        raise _Refused("Content-Length occurs more than once")
    if not lengths[0].isdigit() or len(lengths[0]) > _MOST_LENGTH_DIGITS:
        raise _Refused("Content-Length is not a number of octets")
    length = int(lengths[0])
    return (_State.CONTENT, length) if length else (_State.HEAD, 0)
