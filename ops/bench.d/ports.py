"""Ports for the programs under measurement."""
import random
import socket

GIVEN = set()


def free_port():
    """A port of the loopback interface that nobody listens on, given once, from below the range of outgoing connections."""
    for _ in range(1000):
        port = random.randrange(10000, 32000)
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in GIVEN:
            GIVEN.add(port)
            return port
    raise SystemExit("bench: no free port between 10000 and 32000 of 127.0.0.1")
