"""AWS credentials of the parent, fetched for one request and kept nowhere.

The default chain of boto3: environment, profile, IMDSv2 of the instance. Asked anew for each
request, so that what is sent is what the chain has now: the instance's credentials are renewed at
their source before they expire. botocore, which is all of boto3 that this needs, is imported at
the first request.
"""

from typing import Final

from enclave_parent_gateway.errors import GatewayError
from enclave_protocol.messages import Credentials

__all__ = ["CredentialsError", "default_credentials"]

_METADATA_ATTEMPTS: Final = 3
"""Of one second each; botocore's own default gives up after one."""


class CredentialsError(GatewayError):
    """This machine has no AWS credentials for the gateway's user."""


def default_credentials() -> Credentials:
    """Return the credentials that the AWS CLI would use here. Blocks (files, IMDS).

    Of the instance's metadata service only version 2 is asked: version 1 answers whoever gets a
    program of this machine to fetch a URL.

    Raises:
        CredentialsError: There are none, or the profile is broken.
    """
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    try:
        session = Session()
        session.set_config_variable("ec2_metadata_v1_disabled", True)
        session.set_config_variable("metadata_service_num_attempts", _METADATA_ATTEMPTS)
        found = session.get_credentials()
        frozen = found.get_frozen_credentials() if found is not None else None
    except BotoCoreError as error:
        raise CredentialsError(f"the AWS credentials cannot be read: {error}") from error
    if frozen is None or not frozen.access_key or not frozen.secret_key:
        raise CredentialsError(
            "no AWS credentials on the parent instance; attach an instance role, or type: "
            "aws configure"
        )
    return Credentials(frozen.access_key, frozen.secret_key, frozen.token)
