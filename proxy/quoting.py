"""What may be repeated of text of others: a value that a person gave, an answer that a server sent. Pure.

People paste a key where its path belongs, and servers repeat what they were sent. So

* a **value** (of a flag, a variable, a member of a file) is quoted only where it is plainly a number, a name, a path,
  an address, an e-mail or a URL without user-info: `quoted`, `plain`. Any other is described, and the sentence names
  where it stands;
* **prose** (of an answer, an exception, a log line) is shown on one line of bounded length without whatever has the
  form of a credential: `one_line`, `masked`;
* a **log line** has no value of a key that names a secret: `redacted`. That is the last net; nothing should reach it;
* a **header** of a deployment is shown without its value by the same rule: `names_secret`;
* an **answer** may repeat what its request had in secret: `secrets_of_request` lists that, for `one_line`.

No form tells a password such as `hunter2` from a name.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any, Final
from urllib.parse import parse_qsl, quote, quote_plus, unquote

__all__ = [
    "NOT_SHOWN",
    "REDACTED",
    "holds_credential",
    "masked",
    "names_secret",
    "one_line",
    "plain",
    "quoted",
    "redacted",
    "secrets_of_request",
    "text_of",
]

NOT_SHOWN: Final = "[not shown]"
"""Stands for a secret in a sentence."""

REDACTED: Final = "[redacted]"
"""Stands for a secret in a log line, where the last net caught it."""

_MOST_CHARACTERS: Final = 300
_MOST_BITS: Final = 996
"""Of a number, which has 300 digits then. Python raises ValueError where it is to write one of thousands of digits."""
_MOST_OCTETS: Final = 64 << 10
_MOST_PROSE: Final = 16 << 10

_MARKUP: Final = re.compile(
    r"<!--.*?(?:-->|$)|<(style|script|title)\b.*?(?:</\1\s*>|$)|<[^>]*(?:>|$)", re.IGNORECASE | re.DOTALL
)

# A bearer credential (but not the challenge in a `www-authenticate`), the login of HTTP's Basic scheme, a JWT or
# another base64 JSON object, Google's tokens, keys and client secrets, an AWS signature, a private key as PEM, as DER
# or as base64 of either, the login in a URL (but not the words in its place that a remedy has).
_CREDENTIAL: Final = re.compile(
    r"(?i:(?:bearer(?:\s|%20|\+)+)+(?!(?:realm|scope|error\w*)=))[^\s\"',;]+"
    r"|(?i:\bbasic(?:\s|%20|\+)+)(?=[\w+/]*[0-9=])[\w+/]{8,}={0,2}"
    r"|e(?:yJ|yA|wo|w0|wk)[A-Za-z0-9_-]{9,}\.[A-Za-z0-9_-]{9,}(?:\.[A-Za-z0-9_-]*)?"
    r"|eyJ[\w.~+/=%-]{8,}"
    r"|e(?:yA|wo|w0|wk)[\w+/=-]{30,}"
    r"|\bya29\.[\w.~+/=%-]{4,}"
    r"|\b1//0[\w-]{6,}"
    r"|\bGOCSPX-[\w-]{6,}"
    r"|\bAIza[\w-]{30,}"
    r"|\bAWS4-HMAC-SHA256\b[^\"\\]*"
    r"|\bSignature=[0-9a-fA-F]{16,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
    r"|\bLS0tLS1CRUdJTi[\w+/=-]*"
    r"|\bMII[\w+/]{24,}"
    r"|(?<=://)(?!USER:PASSWORD@)[^\s/@\"':]{0,256}:[^\s/@\"']{0,256}@"
)

# In lower case, what each of these forms has in it; a login in a URL has an `@`.
_MARKS: Final = (
    "bearer", "basic", "eyj", "eya", "ewo", "ew0", "ewk", "ya29.", "1//0", "gocspx-", "aiza", "aws4-hmac", "signature=",
    "-----begin", "ls0tls1crudjti", "mii",
)  # fmt: skip

# The value of a member of a JSON object, or of a form, that holds a secret by its name.
_SECRET_MEMBER: Final = re.compile(
    r"(?i:(?P<name>[\"']?\b(?:private_?key|client_?secret|(?:refresh|access|id|subject|actor|session|security)_?token"
    r"|assertion|password|secret_?access_?key|(?<=[\"'])token)[\"']?\s*(?:[:=]|%3D)\s*))(?P<value>\"[^\"]*\"?|'[^']*'?|[^\s&,;\"']+)"
)

# Keys of log lines, and names of headers, whose values are secret.
_SECRET_KEY: Final = re.compile(
    r"(?i:(?:^|[_.-])(?:authorization|auth|token|jwt|assertion|signature|credentials?|password|passwd|secret"
    r"|(?:private|api|access|secret)?[_-]?key|cookie)$)"
)

# What is secret of a request for a token: fields by lower-case name, parameters of a form.
_SECRET_FIELDS: Final = frozenset({"authorization", "x-aws-ec2-metadata-token", "x-amz-security-token"})
_SECRET_PARAMETERS: Final = frozenset({"assertion", "client_secret", "refresh_token", "subject_token", "actor_token"})
_MIN_SECRET_CHARACTERS: Final = 6
"""Of shorter ones nothing would be left of a sentence."""

# Keys and tokens of no known form: long words in which letters, digits and upper and lower case change all the time.
# The public key of a Restate server is one of these, and is no secret.
_WORD: Final = re.compile(r"(?<![A-Za-z0-9])(?!(?<=publickeyv1_)[A-Za-z0-9]{1,44}\b)[A-Za-z0-9]{16,}")
_PUBLIC_KEY: Final = re.compile(r"publickeyv1_[A-Za-z0-9]{1,44}")
_RUN: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_LONG_WORD: Final = 24
_HEXADECIMAL: Final = re.compile(r"[0-9a-f]{32,}|[0-9A-F]{32,}")
_LEAST_RUN: Final = 3.3
"""Characters of a run, on average: 4 and more in `camelCase` and `name123456`, 2 in base64 and hexadecimal digits."""

_PATH_CHARACTERS: Final = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\"'`{}<>|*?$\\;&=/]"

_PLAIN: Final = tuple(
    re.compile(form)
    for form in (
        r"",
        r"[+-]?[0-9][0-9_.,]{0,24}(?:[eE][+-]?[0-9]{1,3})?\s?[A-Za-z]{0,8}",
        # A flag; a name; a host, with a port or without; a port alone.
        r"--?[a-z][a-z0-9-]{0,40}",
        r"(?!--)[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,252}(?::[0-9+-]{0,8}|:h2c|:https?)?|:[0-9]{1,8}",
        r"\[?[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9]{1,16})?\]?(?::[0-9]{0,8})?",
        r"[A-Za-z0-9._+-]{1,64}@[A-Za-z0-9.-]{1,253}",
        # A path: absolute, or relative without blanks.
        rf"(?:unix:)?(?:~[A-Za-z0-9_-]{{0,32}}|\.{{1,2}})?(?:/{_PATH_CHARACTERS}*)+",
        r"(?!--)(?:unix:)?(?:[\w.~+-]+/)*[\w.~+-]+/?",
        r"unix:",
        # The principal of a federated identity, or a URL: no user-info, no query, no fragment.
        r"[A-Za-z][A-Za-z0-9+.-]{1,19}://(?:[^\s/?#@\\:\[\]]*|\[[\w:.%]*\]?[\w.-]*)(?::[0-9]{0,8}|:[a-z]{1,5})?(?:/[^\s?#@\\\"'<>{}|^`]*)?",
    )
)


def plain(value: object) -> str | None:
    """Return a value that is plainly no secret as it may stand in a sentence, with quotes if it is text; else None.

    Of a URL the query and the fragment are left out.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return None
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str | PurePath):
        return None
    text = str(value)
    if "://" in text and "@" not in text:
        text = re.split(r"[?#]", text, maxsplit=1)[0]
    # Names of files need not be UTF-8; what is not is held in lone surrogates, which `repr` writes as escapes.
    shape = re.sub(r"[\udc80-\udcff]", "_", text)
    if len(text) > _MOST_CHARACTERS or holds_credential(text) or _is_key(text):
        return None
    return repr(text) if any(form.fullmatch(shape) for form in _PLAIN) else None


def quoted(value: object) -> str:
    """Return what may stand for a value in a sentence: the value, where it is plainly no secret, or what it is."""
    return plain(value) or _described(value)


def holds_credential(text: str) -> bool:
    """Return whether a part of the text has the form of a credential: a token, a key, a login in a URL."""
    return _may_hold_credential(text) and _CREDENTIAL.search(text) is not None


def masked(text: str, instead: str = NOT_SHOWN) -> str:
    """Return the text with `instead` in the place of everything that has the form of a credential."""
    return _CREDENTIAL.sub(instead, text) if _may_hold_credential(text) else text


def one_line(text: str, most_characters: int = 160, secrets: Iterable[str] = ()) -> str:
    """Return prose from outside on one line: printable, bounded, without `secrets` and what looks like one."""
    text = text[:_MOST_PROSE]
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, NOT_SHOWN)
    text = masked(text)
    text = _SECRET_MEMBER.sub(lambda member: member["name"] + NOT_SHOWN, text)
    text = _WORD.sub(lambda word: NOT_SHOWN if len(word[0]) >= _LONG_WORD and _is_opaque(word[0]) else word[0], text)
    line = " ".join("".join(mark if mark.isprintable() else " " for mark in text).split())
    return line if len(line) <= most_characters else line[: most_characters - 1] + "…"


def names_secret(name: str) -> bool:
    """Return whether a key of a log line, or the name of a header, says that its value is secret."""
    return _SECRET_KEY.search(name) is not None


def redacted(value: Any, key: str = "") -> Any:
    """Return a value of a log line as plain data, without secrets; all of it is one if its `key` names a secret.

    A value that is no plain data becomes its masked `repr`, so that a renderer sees no more than this function.
    """
    if names_secret(key):
        return REDACTED
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return masked(value, REDACTED)
    if isinstance(value, bytes | bytearray):
        return masked(value.decode("utf-8", "backslashreplace"), REDACTED)
    if isinstance(value, Mapping):
        return {str(name): redacted(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redacted(item) for item in value]
    return masked(repr(value), REDACTED)


def secrets_of_request(headers: Mapping[str, str], body: bytes | None) -> tuple[str, ...]:
    """Return the secrets of a request, in fields and form, in all spellings in which an answer may repeat them."""
    found = set()
    for name, value in headers.items():
        if name.lower() in _SECRET_FIELDS:
            found |= {value, value.partition(" ")[2]}
    for name, value in parse_qsl((body or b"").decode("utf-8", "replace")):
        if name in _SECRET_PARAMETERS:
            found |= {value, *_secrets_of_signed_request(value)}
    spelled = {spell(secret) for secret in found for spell in (str, quote, quote_plus, _in_json)}
    return tuple(secret for secret in spelled if len(secret) >= _MIN_SECRET_CHARACTERS)


def _secrets_of_signed_request(subject_token: str) -> set[str]:
    """Return the secrets of a signed request to AWS, which is a subject token in the form of (quoted) JSON."""
    try:
        fields = json.loads(unquote(subject_token))["headers"]
        pairs = [(field.get("key"), field.get("value")) for field in fields if isinstance(field, dict)]
    except (ValueError, RecursionError, KeyError, TypeError, IndexError):
        return set()
    return {str(value) for key, value in pairs if str(key).lower() in _SECRET_FIELDS}


def _in_json(text: str) -> str:
    return json.dumps(text)[1:-1]


def _may_hold_credential(text: str) -> bool:
    """Return False where no form of a credential begins; every value of every log line is asked, mostly in vain."""
    lowered = text.lower()
    return any(mark in lowered for mark in _MARKS) or ("@" in text and "://" in text)


def text_of(body: bytes) -> str:
    """Return the text of a body, without the mark-up of a page; `""` for one that is no text."""
    text = body[:_MOST_OCTETS].decode("utf-8", "replace")
    if "\0" in text or text.count("\ufffd") * 10 > len(text):
        return ""
    return html.unescape(_MARKUP.sub(" ", text)) if text.lstrip().startswith("<") else text


def _is_key(value: str) -> bool:
    """Return whether a value, or a word of it, is more like a key than like a name."""
    if any(map(_is_opaque, _WORD.findall(value))):
        return True
    if _PUBLIC_KEY.fullmatch(value):
        return False
    # base64 has `/`, `+`, `-` and `_`, which separate words; it has no `.`, which most paths and hosts have.
    return any(map(_is_mixed, value.split("/") if "." in value else (value,)))


def _is_opaque(word: str) -> bool:
    """Return whether this is no word that a person would make up."""
    if _HEXADECIMAL.fullmatch(word) or (len(word) >= _LONG_WORD and word.isupper()):
        return True
    return len(word) < _LEAST_RUN * len(_RUN.findall(word))


def _is_mixed(text: str) -> bool:
    """Return whether upper case, lower case and digits change places all the time, whatever stands between them."""
    word = "".join(filter(str.isalnum, text))
    if len(word) < _LONG_WORD or word.islower() or word.isupper():
        return False
    return len(word) < _LEAST_RUN * len(_RUN.findall(word))


def _described(value: object) -> str:
    if isinstance(value, str | PurePath):
        text = str(value)
        if holds_credential(text):
            return "what looks like a credential (not shown)"
        lines = len(text.splitlines())
        return f"a text of {len(text)} characters{f' on {lines} lines' if lines > 1 else ''} (not shown)"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int):
        return f"a number of {value.bit_length()} bits"
    return f"a {type(value).__name__}"
