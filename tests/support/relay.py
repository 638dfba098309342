"""A relay before a server's socket, which can fall silent or hang up."""

import shutil
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from psycopg.conninfo import conninfo_to_dict

from support.servers import PgServer, scratch


class _Front:
    """Listens on a socket of its own, in *folder*, for the clients of a server; *target* is that server's socket."""

    def __init__(self, server: PgServer, port: str = "5432") -> None:
        parts = conninfo_to_dict(server.dsn)
        self.target, self.port = f"{parts['host']}/.s.PGSQL.{parts['port']}", port
        self.folder = scratch()
        self.listener = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> Self:
        self.listener.bind(str(self.folder / f".s.PGSQL.{self.port}"))
        self.listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _hang_up(self.listener)
        self.sever()
        shutil.rmtree(self.folder, ignore_errors=True)

    def reach(self) -> socket.socket:
        """Connect to the server."""
        far = socket.socket(socket.AF_UNIX)
        far.connect(self.target)
        return far

    def meet(self, near: socket.socket) -> None:
        """Begin to serve a client."""
        raise NotImplementedError

    def sever(self) -> None:
        """End every connection."""
        raise NotImplementedError

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self.meet(self.listener.accept()[0])


def _hang_up(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


class Relay(_Front):
    """Passes bytes on, in both directions, until a client sends *until*; then that connection says nothing more.

    Both peers stay connected and acknowledged, as behind a firewall that forgot a connection. With *instead* it says
    the second of two texts of one length for the first, so that the server does not do what it was told.
    """

    def __init__(
        self, server: PgServer, *, until: bytes | None = None, instead: tuple[bytes, bytes] | None = None
    ) -> None:
        super().__init__(server)
        self.until, self.instead = until, instead
        self.silent = False
        self.sockets: list[socket.socket] = []

    def mute(self) -> None:
        """Fall silent now."""
        self.silent = True

    def dsn(self, **parts: str) -> str:
        return " ".join(f"{key}={value}" for key, value in {"host": self.folder, "user": "postgres", **parts}.items())

    def meet(self, near: socket.socket) -> None:
        far = self.reach()
        self.sockets += [near, far]
        muted = threading.Event()
        threading.Thread(target=self._pump, args=(near, far, muted, self.until), daemon=True).start()
        threading.Thread(target=self._pump, args=(far, near, muted, None), daemon=True).start()

    def sever(self) -> None:
        for each in self.sockets:
            _hang_up(each)

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


class Pooler(_Front):
    """A pooler of one session: who connects gets it as the last client left it, and is told another process id."""

    def __init__(self, server: PgServer) -> None:
        super().__init__(server)
        self.server = self.reach()
        words = b"user\0postgres\0database\0postgres\0\0"
        self.server.sendall(struct.pack("!ii", len(words) + 8, 196608) + words)
        greeting = self._until_ready()
        at = greeting.index(b"K\0\0\0")
        length = struct.unpack("!i", greeting[at + 1 : at + 5])[0]
        self.greeting = greeting[:at] + b"K" + struct.pack("!iii", 12, 1, 1) + greeting[at + 1 + length :]

    @property
    def dsn(self) -> str:
        return f"host={self.folder} user=postgres dbname=postgres"

    def _until_ready(self) -> bytes:
        data = b""
        while not data.endswith((b"Z\0\0\0\5I", b"Z\0\0\0\5T", b"Z\0\0\0\5E")):
            data += self.server.recv(65536)
        return data

    def meet(self, near: socket.socket) -> None:
        with near, suppress(ConnectionError):
            near.recv(65536)
            near.sendall(self.greeting)
            while (data := near.recv(65536)) and not data.startswith(b"X"):
                self.server.sendall(data)
                near.sendall(self._until_ready())

    def sever(self) -> None:
        _hang_up(self.server)


class Cutter(_Front):
    """Counts the messages of a command over all its connections, and does a deed before it passes a chosen one on.

    A message is a Query or a Sync of the client, the ends of what it asks. The deed gets the process id of the server's
    end of that connection, and returns whether the relay goes on; if not, all its connections are severed.
    """

    def __init__(self, server: PgServer) -> None:
        super().__init__(server, str(conninfo_to_dict(server.dsn)["port"]))
        self.lock = threading.Lock()
        self.lines: set[_Line] = set()
        self.arm()

    def arm(self, nth: int = 0, deed: Callable[[int], bool] | None = None) -> None:
        """Count anew; *met* is what the message was, once the deed was done."""
        with self.lock:
            self.nth, self.deed, self.count, self.met = nth, deed, 0, ""

    def meet(self, near: socket.socket) -> None:
        line = _Line(near, self.reach())
        with self.lock:
            self.lines.add(line)
        threading.Thread(target=self._serve, args=(line,), daemon=True).start()

    def sever(self) -> None:
        with self.lock:
            self._sever()

    def _serve(self, line: "_Line") -> None:
        back: threading.Thread | None = None
        with suppress(OSError, EOFError):
            if line.begin():
                back = threading.Thread(target=line.answer, daemon=True)
                back.start()
                while self._may_pass(line, message := _message(line.near)):
                    line.far.sendall(message)
        with suppress(OSError):
            line.far.shutdown(socket.SHUT_WR)
        if back is not None:
            back.join()
        with self.lock:
            self.lines.discard(line)
        line.near.close()
        line.far.close()

    def _may_pass(self, line: "_Line", message: bytes) -> bool:
        if message[:1] == b"P":
            line.asked = message
        if message[:1] not in (b"Q", b"S"):
            return True
        with self.lock:
            if line not in self.lines:
                return False
            self.count += 1
            if self.count == self.nth and self.deed is not None:
                asked = message if message[:1] == b"Q" else line.asked
                self.met = f"{message[:1].decode()} {asked[5:205].decode(errors='replace')}".replace("\0", " ")
                if not self.deed(line.pid):
                    self._sever()
                    return False
        return True

    def _sever(self) -> None:
        for line in self.lines:
            for end in (line.near, line.far):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self.lines.clear()


class _Line:
    """One connection of a client, *near*, with the server, *far*, whose process is *pid*."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near, self.far, self.pid, self.asked = near, far, 0, b""

    def begin(self) -> bool:
        """Pass on what comes before typed messages; return whether a session begins with it."""
        while True:
            head = _exactly(self.near, 4)
            body = _exactly(self.near, struct.unpack("!i", head)[0] - 4)
            self.far.sendall(head + body)
            code = struct.unpack("!i", body[:4])[0]
            if code in (80877103, 80877104):  # asks for TLS or GSSAPI, which has no part in a Unix socket
                self.near.sendall(_exactly(self.far, 1))
            else:
                return bool(code >> 16 == 3)

    def answer(self) -> None:
        """Pass on what the server says, and learn from it which process it is."""
        with suppress(OSError, EOFError):
            while not self.pid:
                message = _message(self.far)
                if message[:1] == b"K":
                    self.pid = struct.unpack("!i", message[5:9])[0]
                self.near.sendall(message)
            while data := self.far.recv(65536):
                self.near.sendall(data)
        with suppress(OSError):
            self.near.shutdown(socket.SHUT_RDWR)


def _message(source: socket.socket) -> bytes:
    head = _exactly(source, 5)
    return head + _exactly(source, struct.unpack("!i", head[1:])[0] - 4)


def _exactly(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = source.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data
