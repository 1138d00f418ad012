"""Attacks on the egress proxy from inside, written as in `attempt`."""

import socket

from tests.redteam.attempt import Outcomes, attempt

HOST, PORT = "127.0.0.1", 3128


def reach_the_proxy() -> Outcomes:
    """Whether anything at all listens where notebooks have their proxy."""
    outcomes: Outcomes = {}
    attempt(outcomes, "proxy", socket.create_connection, (HOST, PORT), 15)
    return outcomes


def reach_the_network(addresses: list[str]) -> Outcomes:
    """Whether an address can be connected to without the proxy; the port does not matter."""
    outcomes: Outcomes = {}
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(5)
            attempt(outcomes, address, sock.connect, (address, 80))
    return outcomes
