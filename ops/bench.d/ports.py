"""Ports for the programs under measurement."""
import random
import socket

GIVEN = set()


def free_port():
    """A port of the loopback interface that nobody listens on, given once; from below the ports of demo agents and of
    outgoing connections."""
    for _ in range(1000):
        port = random.randrange(10000, 20000)
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in GIVEN:
            GIVEN.add(port)
            return port
    raise SystemExit("bench: no free port between 10000 and 20000 of 127.0.0.1")
