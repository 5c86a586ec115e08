"""Checks of single members of a credential file."""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from proxy.errors import CredentialsInvalid
from proxy.routes.locality import address_of, is_link_local, is_loopback

__all__ = ["check_url", "is_filled", "is_near"]

# RFC 3986 has no other character, but for the names in braces that google-auth fills in.
_VISIBLE: Final = re.compile(r"[!-\[\]-~]+")

# IPv6 addresses of AWS' metadata servers: EC2's fd00:ec2::254, EKS' fd00:ec2::23. Link-local but for their prefix.
_METADATA_OF_AWS: Final = ipaddress.IPv6Network("fd00:ec2::/32")


def is_filled(value: object, is_object: bool) -> bool:
    """Return whether a member has content, of the type that it must have."""
    return bool(value) and isinstance(value, dict if is_object else str)


def is_near(url: str) -> bool:
    """Return whether a URL leads to this machine, or to a metadata server: by its address, loopback or link-local."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    address = address_of(host)
    return is_loopback(host) or is_link_local(host) or (address is not None and address in _METADATA_OF_AWS)


def check_url(url: object, name: str, where: str) -> None:
    """Raise CredentialsInvalid unless a secret may be sent to a URL (None or `""` is no URL, and nothing is sent)."""
    if url is None or url == "":
        return
    text = url if isinstance(url, str) else ""
    try:
        parts = urlsplit(text)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("https", "http") or not parts.hostname or not _VISIBLE.fullmatch(text):
        raise CredentialsInvalid(f"{where}: its {name} is not an http(s) URL")
    if "@" in parts.netloc:
        raise CredentialsInvalid(f"{where}: its {name} has a user name or password, which is not sent; remove it")
    if parts.scheme == "http" and not is_near(text):
        raise CredentialsInvalid(
            f"{where}: its {name} is plain http:// to another machine, but secrets are sent there or come from "
            "there; it has to be https://"
        )
