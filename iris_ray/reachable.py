"""Whether somebody listens at an address."""

import socket


def knock(address: str, timeout_s: float) -> None:
    """Raises `OSError` if nobody listens at HOST:PORT, `ValueError` if it is no such address."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=timeout_s).close()
