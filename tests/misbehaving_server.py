"""A server on 127.0.0.1 that breaks every rule, one behaviour per request."""

import contextlib
import gzip
import json
import os
import socket
import struct
import threading
import time

GOOD = json.dumps(
    {"result": [[{"document": {"id": "1", "contents": '"Etna"\nA volcano.'}, "score": 2.5}]]}
).encode()


def build_response(body, status="200 OK", headers=(), length=None):
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {size}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


RESPONSE_START = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
RESPONSES = {
    "ok": build_response(GOOD),
    "rate limit": build_response(b"slow down", "429 Too Many Requests"),
    "rate limit a minute": build_response(b"", "429 Too Many Requests", ["Retry-After: 60"]),
    "error 500": build_response(b"oops", "500 Internal Server Error"),
    "error 503 page": build_response(b"<html>busy</html>", "503 Service Unavailable"),
    "password": build_response(b"", "401 Unauthorized"),
    "truncate": build_response(GOOD, length=len(GOOD) + 100),
    "lie short": build_response(GOOD, length=len(GOOD) // 2),
    "lie negative": build_response(GOOD, length=-5),
    "garbage": os.urandom(500),
    "garbage body": build_response(os.urandom(500)),
    "html body": build_response(b"<html>Please sign in</html>"),
    "wrong schema": build_response(b'{"result": {"0": "x"}}'),
    "deep json": build_response(b"[" * 100_000),
    "redirect": build_response(b"", "302 Found", ["Location: http://127.0.0.1:1/"]),
    "empty": b"",
    "bad gzip": build_response(b"\x1f\x8b" + os.urandom(100), headers=["Content-Encoding: gzip"]),
    "half gzip": build_response(gzip.compress(GOOD)[:-12], headers=["Content-Encoding: gzip"]),
    "good gzip": build_response(gzip.compress(GOOD), headers=["Content-Encoding: gzip"]),
    "brotli": build_response(GOOD, headers=["Content-Encoding: br"]),
    "bomb": build_response(gzip.compress(b"a" * (1 << 28), 1), headers=["Content-Encoding: gzip"]),
    "huge claim": RESPONSE_START + b"Content-Length: 10737418240\r\n\r\n" + b"a" * 1000,
    "bad chunk": RESPONSE_START + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc",
}
TEN_GB = 10 << 30
HANG_S = 300


class MisbehavingServer:
    """Answers each request with the next behaviour of the script, the last one for ever."""

    def __init__(self, *script):
        self.script, self.requests, self.sent = list(script), [], 0
        self.outlasted = []
        """Behaviours without end that no client broke off."""
        self.stopping = threading.Event()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self):
        self.threads[0].start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self._close_listener()
        for thread in self.threads:
            thread.join(10)

    def _close_listener(self):
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _accept(self):
        while not self.stopping.is_set():
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self.threads.append(thread)
            thread.start()

    def _serve(self, connection):
        with connection:
            while not self.stopping.is_set():
                connection.settimeout(0.2)
                try:
                    request = self._request(connection)
                except TimeoutError:
                    continue
                except OSError:
                    return
                if not request:
                    return
                behaviour = self.script.pop(0) if len(self.script) > 1 else self.script[0]
                self.requests.append(request)
                connection.settimeout(10)
                with contextlib.suppress(OSError):
                    if self._behave(connection, behaviour):
                        continue
                return

    def _request(self, connection):
        data = connection.recv(65536)
        while data and b"\r\n\r\n" not in data:
            data += connection.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                while len(body) < int(line.split(b":")[1]):
                    body += connection.recv(65536)
        return data and head + b"\r\n\r\n" + body

    def _behave(self, connection, behaviour):
        """Answer; return True if the connection stays open."""
        if isinstance(behaviour, bytes):
            connection.sendall(behaviour)
            return True
        if behaviour in RESPONSES:
            connection.sendall(RESPONSES[behaviour])
            return behaviour == "ok"
        if behaviour == "hang":
            self.stopping.wait(HANG_S)
            self._record_end(behaviour)
        elif behaviour == "slow":
            self.stopping.wait(0.2)
            connection.sendall(RESPONSES["ok"])
            return True
        elif behaviour == "drip headers":
            self._drip(connection, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000)
            self._record_end(behaviour)
        elif behaviour == "drip body":
            self._drip(
                connection, RESPONSE_START + b"Content-Length: 100000\r\n\r\n" + b"a" * 100_000
            )
            self._record_end(behaviour)
        elif behaviour in ("ten gigabytes", "ten gigabytes in chunks"):
            self._flood(connection, chunked=behaviour.endswith("chunks"))
            self._record_end(behaviour)
        elif behaviour == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif behaviour == "reset half-way":
            connection.sendall(RESPONSES["ok"][:-20])
            time.sleep(0.05)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif behaviour == "die half-way":
            connection.sendall(RESPONSES["ok"][:-20])
            self.stopping.set()
            self._close_listener()
        else:
            raise AssertionError(behaviour)
        return False

    def _record_end(self, behaviour):
        """Record a behaviour that ended by itself: no client hung up, the server was not closed."""
        if not self.stopping.is_set():
            self.outlasted.append(behaviour)

    def _drip(self, connection, data):
        for i in range(len(data)):
            if self.stopping.wait(0.02):
                return
            connection.sendall(data[i : i + 1])

    def _flood(self, connection, chunked):
        block = b"a" * (1 << 16)
        head = b"Transfer-Encoding: chunked" if chunked else f"Content-Length: {TEN_GB}".encode()
        connection.sendall(RESPONSE_START + head + b"\r\n\r\n")
        while self.sent < TEN_GB and not self.stopping.is_set():
            connection.sendall(b"10000\r\n" + block + b"\r\n" if chunked else block)
            self.sent += len(block)
