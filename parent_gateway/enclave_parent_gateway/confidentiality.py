"""What must be said, loudly, of an enclave that keeps no secrets."""

from enclave_parent_gateway.backends.base import is_confidential
from enclave_parent_gateway.enclave_state import EnclaveState

__all__ = ["confidentiality_warning"]

_DEBUG = (
    "DEBUG MODE, NOT CONFIDENTIAL: root on this machine reads the enclave's console, nothing about "
    "its image is proven (PCR0 is zero), no key for a production package is released to it. Start "
    "it without --debug-mode for anything but finding out what an image does"
)


def confidentiality_warning(state: EnclaveState) -> str | None:
    """Return the warning for an enclave; None if what runs there is hidden from this machine."""
    if is_confidential(state):
        return None
    if state.debug:
        return _DEBUG
    where = ", with something in place of its hardware" if state.stand_in is not None else ""
    return f"NOT CONFIDENTIAL ({state.backend} backend{where})"
