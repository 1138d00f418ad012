"""What CodeBuild's container would have: a pipeline's tools, unpacked, and its environment."""

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enclave_infra.local_cloud.identities import REGION
from enclave_infra.tools_bundle import write_bundle
from tests.support.local_services import OWNER_CREDENTIALS, LocalCloudProcess
from tests.support.wheelhouse import fill_wheelhouse

__all__ = ["codebuild_environment", "unpacked_tools"]


def unpacked_tools(directory: Path) -> tuple[Path, str]:
    """Return the owner's bundle as CodeBuild unpacks a secondary source, and its SHA-256."""
    fill_wheelhouse(directory / "wheels", "owner")
    digest = write_bundle(directory / "wheels", directory / "tools.zip")
    shutil.rmtree(directory / "wheels")
    with zipfile.ZipFile(directory / "tools.zip") as bundle:
        bundle.extractall(directory / "unpacked")
    (directory / "tools.zip").unlink()
    return directory / "unpacked", digest


def codebuild_environment(
    project: Mapping[str, Any], home: Path, source: Path, tools: Path, cloud: LocalCloudProcess
) -> dict[str, str]:
    """Return the environment of a project's build; the local cloud stands for AWS.

    Args:
        project: As its template resolves.
        home: An empty directory, for temporary files, too.
        source: Where the source is checked out.
        tools: Where the secondary source `tools` is unpacked.
        cloud: It knows the owner's role by its credentials.
    """
    variables = project["Environment"]["EnvironmentVariables"]
    return {
        **{found["Name"]: found["Value"] for found in variables},
        "HOME": str(home),
        "TMPDIR": str(home),
        "CODEBUILD_SRC_DIR": str(source),
        "CODEBUILD_SRC_DIR_tools": str(tools),
        # CodeBuild has its role's credentials in the container.
        "AWS_ACCESS_KEY_ID": OWNER_CREDENTIALS.access_key_id,
        "AWS_SECRET_ACCESS_KEY": OWNER_CREDENTIALS.secret_access_key,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": cloud.endpoint_url,
    }
