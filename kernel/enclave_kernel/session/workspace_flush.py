"""A cell ends when what it wrote to the workspace is on the parent's disk."""

import contextlib
from typing import Any

from enclave_kernel.session.supervisor_link import SupervisorGoneError, SupervisorLink

__all__ = ["flush_after_cells"]


def flush_after_cells(shell: Any, link: SupervisorLink) -> None:
    """Wait at the end of every cell until the parent has its files.

    Args:
        shell: IPython's; anything else that runs after cells has run by then.
        link: To the supervisor, which asks the process that mirrors.
    """

    def flush() -> None:
        with contextlib.suppress(SupervisorGoneError):
            link.flush_workspace()

    shell.events.register("post_execute", flush)
