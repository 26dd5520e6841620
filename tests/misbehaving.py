"""Servers that are absent, hang, or talk nonsense: a port, and what each connection to it meets."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Generator


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket], None] | None) -> Generator[int]:
    """Give a port: closed without an answer; else each connection is answered so, on a thread of its own."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        ended = threading.Event()
        threads: list[threading.Thread] = []

        def serve() -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    threads.append(threading.Thread(target=converse, args=[connection], daemon=True))
                    threads[-1].start()

        def converse(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                answer(connection)  # type: ignore[misc]

        if answer is not None:
            server.listen()
            accepting = threading.Thread(target=serve, daemon=True)
            accepting.start()
        try:
            yield server.getsockname()[1]
        finally:
            ended.set()
            if answer is not None:
                server.shutdown(socket.SHUT_RDWR)
                accepting.join(5)


def hanging(connection: socket.socket) -> None:
    while connection.recv(65_536):
        pass


def garbage(connection: socket.socket) -> None:
    connection.recv(65_536)
    connection.sendall(b"\x00\x00\x00\x10\xff\xfe<html>\x1b[31mSSH-2.0\r\n" * 20)


def http(head: str, body: str = "", *, then: str = "") -> Callable[[socket.socket], None]:
    """Return what answers each HTTP request so, and goes."""
    whole = f"HTTP/1.1 {head}\r\n{then}connection: close\r\n\r\n{body}".encode()

    def answer(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(whole)

    return answer
