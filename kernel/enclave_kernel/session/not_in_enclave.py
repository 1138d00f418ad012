"""The way from a magic to the supervisor, and the error where there is none."""

from typing import TYPE_CHECKING, Any

from enclave_protocol.errors import EnclaveError

if TYPE_CHECKING:
    from enclave_kernel.session.supervisor_link import SupervisorLink

__all__ = ["NotInEnclaveError", "supervisor_link"]


class NotInEnclaveError(EnclaveError):
    """This kernel has no supervisor to ask."""


def supervisor_link(shell: Any) -> "SupervisorLink":
    """Return the link of the kernel that this shell belongs to.

    Raises:
        NotInEnclaveError: It has none: it is an ordinary kernel.
    """
    link: SupervisorLink | None = getattr(getattr(shell, "kernel", None), "supervisor_link", None)
    if link is None:
        raise NotInEnclaveError(
            "this kernel does not run in an enclave: choose the kernel 'enclave' "
            "(install it with: enclave install-kernelspec)"
        )
    return link
