"""The other end of the local socket: a process that takes blobs and says when it has all.

Standard library only, so that it starts at once.
"""

import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context

TIMEOUT_S = 120.0
LENGTH = 8  # bytes that say how many follow


def serve(port_to: object) -> None:
    """Takes messages until one of no bytes; answers each with its checksum."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT_S)
        port_to.send(server.getsockname()[1])
        connection, _ = server.accept()
        with connection:
            connection.settimeout(TIMEOUT_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            room = memoryview(bytearray(0))
            while size := int.from_bytes(_take(connection, memoryview(bytearray(LENGTH)))):
                if len(room) != size:
                    room = memoryview(bytearray(size))
                content = _take(connection, room)
                connection.sendall(b"\1")  # it is there: what follows is no part of the transfer
                connection.sendall(zlib.crc32(content).to_bytes(4))


class Link:
    """This end."""

    def __init__(self, connection: socket.socket):
        self._connection = connection

    def send(self, blob) -> None:
        """Returns when the other process has all of it."""
        self._connection.sendall(len(blob).to_bytes(LENGTH))
        self._connection.sendall(blob)
        _take(self._connection, memoryview(bytearray(1)))

    def arrived(self) -> int:
        """The checksum that the other process found, once for each `send`."""
        return int.from_bytes(_take(self._connection, memoryview(bytearray(4))))


@contextmanager
def linked() -> Iterator[Link]:
    """A link to a new process, which ends with the block."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    try:
        if not ours.poll(TIMEOUT_S):
            raise TimeoutError("the receiving process does not start")
        with socket.create_connection(("127.0.0.1", ours.recv()), TIMEOUT_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield Link(connection)
            connection.sendall(bytes(LENGTH))
    finally:
        process.join(5)
        if process.is_alive():
            process.terminate()


def _take(connection: socket.socket, room: memoryview) -> memoryview:
    got = 0
    while got < len(room):
        count = connection.recv_into(room[got:])
        if not count:
            raise ConnectionError("the other process has gone")
        got += count
    return room
