"""Errors of the egress proxy. Their texts reach the notebook, so they hold checked words only."""

from enclave_parent_gateway.errors import GatewayError

__all__ = [
    "AddressRefusedError",
    "AllowlistError",
    "BusyError",
    "ClientHelloError",
    "DestinationRefusedError",
    "EgressError",
    "HeadTooLargeError",
    "LengthRequiredError",
    "RequestError",
    "SlowError",
    "UnreachableError",
]


class EgressError(GatewayError):
    """A connection is not carried. `status` is the HTTP status of the answer (RFC 9110)."""

    status = 500


class AllowlistError(GatewayError):
    """An entry, or a file of them, is not one."""


class RequestError(EgressError):
    """The request is malformed, or of a kind that is not carried."""

    status = 400


class LengthRequiredError(RequestError):
    """A body in chunks: how long it is cannot be told beforehand."""

    status = 411


class HeadTooLargeError(RequestError):
    """The request's head is over its limit."""

    status = 431


class SlowError(EgressError):
    """The request's head did not come in time."""

    status = 408


class DestinationRefusedError(EgressError):
    """The destination is not on the allowlist."""

    status = 403


class AddressRefusedError(EgressError):
    """The destination's address is one that nobody in an enclave has business with."""

    status = 403


class UnreachableError(EgressError):
    """The destination has no address, or does not answer there."""

    status = 502


class BusyError(EgressError):
    """As many connections as may be are open."""

    status = 503


class ClientHelloError(EgressError):
    """What should be the start of TLS to the destination is not: the tunnel is closed."""

    status = 421
