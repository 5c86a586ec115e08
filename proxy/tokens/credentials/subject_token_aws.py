"""A signed request to AWS as subject token, with keys from the environment or from EC2's metadata server."""

from __future__ import annotations

from typing import Final

from proxy.errors import CredentialsInvalid, Failure, MintRefused
from proxy.tokens.calls import NotConnected, Reply, in_parentheses
from proxy.tokens.credentials.subject_token import SubjectTokenSource

__all__ = ["AwsSource"]

_VARIABLES: Final = "AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"


class AwsSource(SubjectTokenSource):
    """AWS; google-auth asks the metadata server and signs."""

    member = "environment_id"

    def failed(self, cause: Failure) -> Failure:
        what = (
            f"{self.path} takes the identity of this machine from AWS' metadata server (EC2), which gave none: {cause}"
        )
        if not isinstance(cause, NotConnected):
            return type(cause)(what)
        # Permanent: as long as this runs in the same place, it stays so.
        return CredentialsInvalid(
            f"{what}. Where there is none (Fargate, EKS, Lambda), set {_VARIABLES}; container credentials "
            "(AWS_CONTAINER_CREDENTIALS_RELATIVE_URI, AWS_CONTAINER_CREDENTIALS_FULL_URI, AWS_WEB_IDENTITY_TOKEN_FILE) "
            "are not read, so hand them over in these variables. In a container on EC2, raise the metadata server's "
            "hop limit to 2"
        )

    def refused(self, host: str, reply: Reply) -> Failure:
        if reply.status == 401 and "imdsv2_session_token_url" not in self.settings:
            return CredentialsInvalid(
                f"AWS' metadata server wants a session token (IMDSv2): {self.path} lacks imdsv2_session_token_url; "
                f"create it again with --enable-imdsv2{in_parentheses(reply)}"
            )
        if reply.status == 404:
            return MintRefused(
                f"AWS' metadata server has no credentials for {self.path} (404): attach an IAM role to this machine, "
                f"or set {_VARIABLES}{in_parentheses(reply)}"
            )
        return super().refused(host, reply)
