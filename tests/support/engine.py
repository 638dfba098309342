"""A sync engine as its contract describes it: it starts from its file, and answers with the engine's own SQL."""

import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any, Self
from uuid import UUID

import psycopg
import yaml

PENDING = """SELECT m.id::text, s.username, m.content FROM messages m
             JOIN users r ON r.id = m.recipient_id JOIN users s ON s.id = m.sender_id
             WHERE r.device_id = %s AND m.status = 'pending_sync' ORDER BY m.created_at"""
FETCHED = "UPDATE messages SET status = 'synced', synced_at = NOW(), updated_at = NOW() WHERE id = ANY (%s)"
READ = "UPDATE messages SET status = 'read', read_at = NOW(), updated_at = NOW() WHERE id = %s"
STATUS = """INSERT INTO sync_metadata
                (device_id, last_sync_timestamp, last_synced_lsn, pending_outgoing_count, sync_status)
            VALUES (%s, NULL, NULL, 0, 'idle') ON CONFLICT (device_id) DO NOTHING"""


class _Serving:
    """Serves in a thread for as long as the block runs."""

    _server: socketserver.BaseServer

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Redis(_Serving):
    """As much of a Redis server as an engine needs to start: it answers PING."""

    def __init__(self) -> None:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while self.rfile.readline():
                    self.wfile.write(b"+PONG\r\n")

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        server = self._server = Server(("127.0.0.1", 0), Handler)
        self.port = int(server.server_address[1])


Talk = Callable[[socket.socket, threading.Event], None]  # on a connection, until the event says that the test is over


class Listener(_Serving):
    """A program that is no engine: it notes the head of each request in *heard*, and *talk* is or gives the answer."""

    def __init__(self, talk: bytes | Talk, *, tls: ssl.SSLContext | None = None) -> None:
        self.talk, self.heard, self._over = talk, list[bytes](), threading.Event()
        listener = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                # A client that leaves in the middle is no matter.
                with suppress(OSError):
                    sock = tls.wrap_socket(self.request, server_side=True) if tls else self.request
                    try:
                        listener._answer(sock)
                    finally:
                        sock.close()

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads, request_queue_size = True, 64

        server = self._server = Server(("127.0.0.1", 0), Handler)
        self.port = int(server.server_address[1])

    def __exit__(self, *_: object) -> None:
        self._over.set()
        super().__exit__()

    def _answer(self, sock: socket.socket) -> None:
        head = more = sock.recv(4096)
        while more and head.startswith(b"GET ") and b"\r\n\r\n" not in head:
            head += (more := sock.recv(4096))
        self.heard.append(head)
        if isinstance(self.talk, bytes):
            sock.sendall(self.talk)
        else:
            self.talk(sock, self._over)


class Engine(_Serving):
    """One engine, started from its file; raises what keeps the real one from starting.

    *ahead* is how far the clock of its host's time zone is from UTC: its own times are local ones. *port* is for a
    second engine on the same file, as in a rolling restart.
    """

    def __init__(self, file: Path, *, ahead: timedelta = timedelta(0), port: int | None = None) -> None:
        self.settings = yaml.safe_load(file.read_text())
        self.ahead = ahead
        self.port = port or int(self.settings["sse"]["port"])
        self.heard: list[tuple[str, str, str | None]] = []  # method, path and device of each request
        self._most = int(self.settings["postgres"]["max_connections"])
        self._idle: LifoQueue[psycopg.Connection[Any]] = LifoQueue()
        self._opened = threading.Semaphore(self._most)
        self._start()

    def _start(self) -> None:
        assert self.settings["sync"]["wal"]["enabled"] is False
        assert self.settings["auth"]["jwt_secret"]
        with self.session() as conn:
            column = "SELECT 1 FROM information_schema.columns WHERE table_name = %s AND column_name = %s"
            if conn.execute(column, ["sync_metadata", "last_synced_lsn"]).fetchone() is None:
                conn.execute("ALTER TABLE sync_metadata ADD COLUMN last_synced_lsn pg_lsn")
            if conn.execute("SELECT 1 FROM pg_indexes WHERE indexname = 'idx_sync_metadata_lsn'").fetchone() is None:
                conn.execute("CREATE INDEX idx_sync_metadata_lsn ON sync_metadata (last_synced_lsn)")
        redis = self.settings["redis"]
        with socket.create_connection((redis["host"], redis["port"]), timeout=5) as peer:
            peer.sendall(b"PING\r\n")
            assert peer.recv(16) == b"+PONG\r\n"
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                engine.serve(self)

            do_POST = do_PUT = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            # As Go's listeners: a port is free again at once, and two never have the same.
            daemon_threads, allow_reuse_address, allow_reuse_port, request_queue_size = True, True, False, 64

        self._server = Server(("127.0.0.1", self.port), Handler)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.rest()

    def rest(self) -> None:
        """Close what is idle, as the real one does after minutes without a request."""
        with suppress(Empty):
            while True:
                self._idle.get_nowait().close()
                self._opened.release()

    @contextmanager
    def session(self) -> Iterator[psycopg.Connection[Any]]:
        """Lend a connection of the pool, a new one where none is idle and the pool may grow."""
        try:
            conn = self._idle.get_nowait()
        except Empty:
            conn = self._connect() if self._opened.acquire(blocking=False) else self._idle.get(timeout=30)
        try:
            yield conn
        finally:
            if conn.closed:
                self._opened.release()
            else:
                self._idle.put(conn)

    def _connect(self) -> psycopg.Connection[Any]:
        told = self.settings["postgres"]
        try:
            return psycopg.connect(
                host=told["host"], port=told["port"], user=told["user"], password=told["password"], dbname=told["db"],
                sslmode=told["ssl_mode"], autocommit=True, connect_timeout=5,
            )  # fmt: skip
        except BaseException:
            self._opened.release()
            raise

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request as the real engine does; 500 carries PostgreSQL's words."""
        self.heard.append((request.command, request.path, request.headers.get("X-Device-ID")))
        length = int(request.headers.get("Content-Length") or 0)
        body = json.loads(request.rfile.read(length)) if length else {}
        try:
            status, answer = self._answer(request.command, request.path, request.headers.get("X-Device-ID"), body)
        except psycopg.Error as error:
            status, answer = 500, str(error)
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        request.send_response(status)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _answer(self, method: str, path: str, device: str | None, body: Mapping[str, Any]) -> tuple[int, Any]:
        if path == "/health":
            return 200, "OK"
        last = path.rpartition("/")[2]
        with self.session() as conn:
            if path.startswith("/api/enrollment/"):
                return self._complete(conn, body) if method == "POST" else self._offer(conn, last)
            if device is None:
                return 401, "Device ID required"
            if path == "/api/users":
                found = conn.execute("SELECT id::text, username, last_message_sent FROM users ORDER BY username")
                return 200, found.fetchall()
            if path == "/api/sync/status":
                conn.execute(STATUS, [device])
                return 200, {"sync_status": "idle"}
            if path == "/api/sync/incoming":
                messages = conn.execute(PENDING, [device]).fetchall()
                conn.execute(FETCHED, [[id_ for id_, *_ in messages]])
                return 200, {"messages": messages}
            if method == "PUT" and path.endswith("/read"):
                conn.execute(READ, [path.split("/")[-2]])
                return 200, {}
        return 404, "404 page not found"

    def now(self) -> datetime:
        """What this engine takes for the time: the wall clock of its host."""
        return datetime.now(UTC).replace(tzinfo=None) + self.ahead

    def _offer(self, conn: psycopg.Connection[Any], token: str) -> tuple[int, Any]:
        question = "SELECT expires_at, used_at, tenant_id FROM enrollment_tokens WHERE token = %s"
        try:
            found = conn.execute(question, [UUID(token)]).fetchone()
        except ValueError:
            found = None
        if found is None:
            return 404, "token not found"
        if found[1] is not None or found[0] < datetime.now(UTC).replace(tzinfo=None):
            return 400, "token expired or used"
        return 200, {"token": token, "tenant_id": found[2], "valid": True}

    def _complete(self, conn: psycopg.Connection[Any], body: Mapping[str, Any]) -> tuple[int, Any]:
        with conn.transaction():
            token = conn.execute(
                """UPDATE enrollment_tokens SET used_at = NOW(), device_id = %s
                   WHERE token = %s AND used_at IS NULL AND expires_at > NOW() RETURNING id""",
                [body["device_id"], body["token"]],
            ).fetchone()
            if token is None:
                return 404, "token not found"
            told = [body["username"], body["device_id"], self.now(), token[0]]
            renamed = conn.execute(
                """UPDATE users SET username = %s, enrolled_at = %s, enrollment_token_id = %s WHERE device_id = %s
                   RETURNING id::text""",
                [told[0], told[2], told[3], told[1]],
            ).fetchone()
            user = (
                renamed
                or conn.execute(
                    """INSERT INTO users (username, user_type, device_id, enrolled_at, enrollment_token_id)
                   VALUES (%s, 'mobile', %s, %s, %s)
                   ON CONFLICT (username) DO UPDATE SET device_id = EXCLUDED.device_id,
                       enrolled_at = EXCLUDED.enrolled_at, enrollment_token_id = EXCLUDED.enrollment_token_id
                   RETURNING id::text""",
                    told,
                ).fetchone()
            )
        assert user is not None
        return 200, {"user_id": user[0], "device_id": body["device_id"]}


def ask(port: int, path: str, *, method: str = "GET", device: str | None = None, **body: Any) -> tuple[int, Any]:
    """Ask an engine as a phone does; return (status, answer)."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(
            method, path, json.dumps(body) if body else None, {"X-Device-ID": device} if device is not None else {}
        )
        answer = connection.getresponse()
        text = answer.read().decode()
        return answer.status, json.loads(text) if text[:1] in "[{" else text
    finally:
        connection.close()
