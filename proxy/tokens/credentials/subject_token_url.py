"""A subject token from a URL, which google-auth fetches."""

from __future__ import annotations

from proxy.tokens.credentials.subject_token import SubjectTokenSource

__all__ = ["UrlSource"]


class UrlSource(SubjectTokenSource):
    """An identity provider's URL, such as the metadata server of another cloud."""

    member = "url"
