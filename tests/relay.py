"""A relay before a server's socket, which can fall silent or hang up."""

import shutil
import socket
import struct
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from conftest import PgServer, scratch
from psycopg.conninfo import conninfo_to_dict


class Relay:
    """Passes bytes on, in both directions, until a client sends *until*; then that connection says nothing more.

    Both peers stay connected and acknowledged, as behind a firewall that forgot a connection. With *instead* it says
    the second of two texts of one length for the first, so that the server does not do what it was told.
    """

    def __init__(
        self, server: PgServer, *, until: bytes | None = None, instead: tuple[bytes, bytes] | None = None
    ) -> None:
        parts = conninfo_to_dict(server.dsn)
        self.target = f"{parts['host']}/.s.PGSQL.{parts['port']}"
        self.until, self.instead = until, instead
        self.silent = False
        self.folder = scratch()
        self.listener = socket.socket(socket.AF_UNIX)
        self.sockets: list[socket.socket] = [self.listener]

    def __enter__(self) -> Self:
        self.listener.bind(str(self.folder / ".s.PGSQL.5432"))
        self.listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for each in self.sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def mute(self) -> None:
        """Fall silent now."""
        self.silent = True

    def dsn(self, **parts: str) -> str:
        return " ".join(f"{key}={value}" for key, value in {"host": self.folder, "user": "postgres", **parts}.items())

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(self.target)
                self.sockets += [near, far]
                muted = threading.Event()
                threading.Thread(target=self._pump, args=(near, far, muted, self.until), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, muted, None), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, muted: threading.Event, until: bytes | None) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if until is not None and until in data:
                    muted.set()
                if self.instead is not None:
                    data = data.replace(*self.instead)
                if not self.silent and not muted.is_set():
                    target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)


class Pooler:
    """A pooler of one session: who connects gets it as the last client left it, and is told another process id."""

    def __init__(self, server: PgServer) -> None:
        parts = conninfo_to_dict(server.dsn)
        self.folder = scratch()
        self.listener = socket.socket(socket.AF_UNIX)
        self.server = socket.socket(socket.AF_UNIX)
        self.server.connect(f"{parts['host']}/.s.PGSQL.{parts['port']}")
        words = b"user\0postgres\0database\0postgres\0\0"
        self.server.sendall(struct.pack("!ii", len(words) + 8, 196608) + words)
        greeting = self._until_ready()
        at = greeting.index(b"K\0\0\0")
        length = struct.unpack("!i", greeting[at + 1 : at + 5])[0]
        self.greeting = greeting[:at] + b"K" + struct.pack("!iii", 12, 1, 1) + greeting[at + 1 + length :]

    def __enter__(self) -> Self:
        self.listener.bind(str(self.folder / ".s.PGSQL.5432"))
        self.listener.listen(8)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for each in (self.listener, self.server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def dsn(self) -> str:
        return f"host={self.folder} user=postgres dbname=postgres"

    def _until_ready(self) -> bytes:
        data = b""
        while not data.endswith((b"Z\0\0\0\5I", b"Z\0\0\0\5T", b"Z\0\0\0\5E")):
            data += self.server.recv(65536)
        return data

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                with client, suppress(ConnectionError):
                    self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        client.recv(65536)
        client.sendall(self.greeting)
        while (data := client.recv(65536)) and not data.startswith(b"X"):
            self.server.sendall(data)
            client.sendall(self._until_ready())
