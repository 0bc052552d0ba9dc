"""A server on 127.0.0.1 that breaks every rule, one behaviour a request."""

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


def response(body, status="200 OK", headers=(), length=None):
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {size}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ONCE = {
    "ok": response(GOOD),
    "rate limit": response(b"slow down", "429 Too Many Requests"),
    "rate limit a minute": response(b"", "429 Too Many Requests", ["Retry-After: 60"]),
    "error 500": response(b"oops", "500 Internal Server Error"),
    "error 503 page": response(b"<html>busy</html>", "503 Service Unavailable"),
    "password": response(b"", "401 Unauthorized"),
    "truncate": response(GOOD, length=len(GOOD) + 100),
    "lie short": response(GOOD, length=len(GOOD) // 2),
    "lie negative": response(GOOD, length=-5),
    "garbage": os.urandom(500),
    "garbage body": response(os.urandom(500)),
    "html body": response(b"<html>Please sign in</html>"),
    "wrong schema": response(b'{"result": {"0": "x"}}'),
    "deep json": response(b"[" * 100_000),
    "redirect": response(b"", "302 Found", ["Location: http://127.0.0.1:1/"]),
    "empty": b"",
    "bad gzip": response(b"\x1f\x8b" + os.urandom(100), headers=["Content-Encoding: gzip"]),
    "half gzip": response(gzip.compress(GOOD)[:-12], headers=["Content-Encoding: gzip"]),
    "good gzip": response(gzip.compress(GOOD), headers=["Content-Encoding: gzip"]),
    "brotli": response(GOOD, headers=["Content-Encoding: br"]),
    "bomb": response(gzip.compress(b"a" * (1 << 28), 1), headers=["Content-Encoding: gzip"]),
    "huge claim": HEAD + b"Content-Length: 10737418240\r\n\r\n" + b"a" * 1000,
    "bad chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc",
}
TEN_GB = 10 << 30
HANGS_S = 300


class MisbehavingServer:
    """Each request takes the next behaviour of the script, the last one for ever."""

    def __init__(self, *script):
        self.script, self.requests, self.sent = list(script), [], 0
        self.outlasted = []
        """Hanging, dripping and flooding that nobody broke off."""
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
        """Returns whether the connection stays open."""
        if isinstance(behaviour, bytes):
            connection.sendall(behaviour)
            return True
        if behaviour in ONCE:
            connection.sendall(ONCE[behaviour])
            return behaviour == "ok"
        if behaviour == "hang":
            self.stopping.wait(HANGS_S)
            self._over(behaviour)
        elif behaviour == "slow":
            self.stopping.wait(0.2)
            connection.sendall(ONCE["ok"])
            return True
        elif behaviour == "drip headers":
            self._drip(connection, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000)
            self._over(behaviour)
        elif behaviour == "drip body":
            self._drip(connection, HEAD + b"Content-Length: 100000\r\n\r\n" + b"a" * 100_000)
            self._over(behaviour)
        elif behaviour in ("ten gigabytes", "ten gigabytes in chunks"):
            self._flood(connection, chunked=behaviour.endswith("chunks"))
            self._over(behaviour)
        elif behaviour == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif behaviour == "reset half-way":
            connection.sendall(ONCE["ok"][:-20])
            time.sleep(0.05)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif behaviour == "die half-way":
            connection.sendall(ONCE["ok"][:-20])
            self.stopping.set()
            self._close_listener()
        else:
            raise AssertionError(behaviour)
        return False

    def _over(self, behaviour):
        """It came to its end before anybody hung up or the server was closed."""
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
        connection.sendall(HEAD + head + b"\r\n\r\n")
        while self.sent < TEN_GB and not self.stopping.is_set():
            connection.sendall(b"10000\r\n" + block + b"\r\n" if chunked else block)
            self.sent += len(block)
