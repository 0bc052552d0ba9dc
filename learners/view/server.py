"""Serves the viewer of a run that trains: the page, and its data as the run goes on.

GET / answers the page; GET /data.json?since=N answers the run's progress, with the trees of its
newest iteration unless that is N. By default only this machine is served.
"""

from __future__ import annotations

import json
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from learners.errors import RolloutFileError
from learners.rollouts import list_iterations
from learners.run_folder import read_metrics
from learners.view.data import collect_page_data
from learners.view.page import build_page

LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(folder: Path, host: str, port: int, max_bytes: int) -> None:
    """Serve until Ctrl-C; for the arguments see `make_server`."""
    server = make_server(folder, host, port, max_bytes)
    print(f"http://{host}:{server.server_port}/ shows {folder}; Ctrl-C stops", flush=True)  # noqa: T201
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


def make_server(folder: Path, host: str, port: int, max_bytes: int) -> ThreadingHTTPServer:
    """Open a server, without serving yet.

    Args:
        folder: of a run; it may still be empty.
        host: address to listen at.
        port: 0: any free port.
        max_bytes: maximum size of the trees in an answer.

    Raises:
        RolloutFileError: the address is taken or not this machine's.
    """
    try:
        return ThreadingHTTPServer((host, port), partial(_Handler, folder, host, max_bytes))
    except OSError as error:
        raise RolloutFileError(
            f"cannot serve at {host}:{port}: {error.strerror}; give --port another"
        ) from error


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    def __init__(self, folder: Path, host: str, max_bytes: int, *args: object) -> None:
        self._folder, self._host, self._max_bytes = folder, host, max_bytes
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if not self._is_for_this_server():
            self._send(HTTPStatus.FORBIDDEN, "text/plain", "this server has another name")
        elif url.path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", build_page(None))
        elif url.path == "/data.json":
            since = parse_qs(url.query).get("since", ["-1"])[0]
            self._send_data(int(since) if since.lstrip("-").isdigit() else -1)
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", "no such page")

    def _is_for_this_server(self) -> bool:
        """True if the Host header names this machine, or other machines are served anyway.

        Without this check any web site could point a name of its own at 127.0.0.1 and read the run
        through the browser (DNS rebinding).
        """
        name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        return self._host not in LOCAL or name in LOCAL

    def _send_data(self, since: int) -> None:
        try:
            data = read_update(self._folder, since, self._max_bytes)
        except RolloutFileError as error:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", str(error))
            return
        text = json.dumps(data, ensure_ascii=False, allow_nan=False)
        self._send(HTTPStatus.OK, "application/json", text)

    def _send(self, status: HTTPStatus, content_type: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in (
            ("Content-Type", content_type),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Content-Security-Policy", "frame-ancestors 'none'"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Log nothing: a page asks every two seconds."""


def read_update(folder: Path, since: int, max_bytes: int) -> dict[str, Any]:
    """Read the data for a page that shows iteration `since`; see `collect_page_data`.

    The trees are those of the newest iteration, or none if the page shows them.

    Raises:
        RolloutFileError: there is no run yet.
    """
    # A run writes an iteration's metrics after its trees: only with both is it complete.
    complete = {int(line["iteration"]) for line in read_metrics(folder)}
    try:
        newest = max((n for n in list_iterations(folder) if n in complete), default=since)
    except RolloutFileError:
        newest = since
    return collect_page_data(folder, () if newest == since else (newest,), max_bytes)
