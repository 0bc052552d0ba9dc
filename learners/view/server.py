"""The viewer of a run that trains: its page, and at /data.json what has come since.

Serves two addresses to GET, from this machine only unless told otherwise. A request under another
name than the server's is refused, so that no other site can read along through a browser.
"""

from __future__ import annotations

import json
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from learners.errors import RolloutFileError
from learners.rollouts import list_iterations
from learners.run_folder import read_metrics
from learners.view.data import page_data
from learners.view.page import page

LOCAL = ("127.0.0.1", "localhost", "::1")


def make_server(folder: Path, host: str, port: int, limit: int) -> ThreadingHTTPServer:
    """A server that is not running yet.

    Args:
        folder: of a run; it may be empty still.
        host: address to listen at.
        port: 0 takes a free one.
        limit: most bytes of trees in an answer.

    Raises:
        RolloutFileError: the address cannot be had.
    """
    try:
        return ThreadingHTTPServer((host, port), partial(_Handler, folder, host, limit))
    except OSError as error:
        raise RolloutFileError(
            f"cannot serve at {host}:{port}: {error.strerror}; give --port another"
        ) from error


def serve(folder: Path, host: str, port: int, limit: int) -> None:
    """Serve until Ctrl-C; for the arguments see `make_server`."""
    server = make_server(folder, host, port, limit)
    print(f"http://{host}:{server.server_port}/ shows {folder}; Ctrl-C stops", flush=True)  # noqa: T201
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    def __init__(self, folder: Path, host: str, limit: int, *args: object) -> None:
        self._folder, self._host, self._limit = folder, host, limit
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:

        asked = urlsplit(self.path)
        if not self._is_ours():
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "another host's name")
        elif asked.path == "/":
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", page(None))
        elif asked.path == "/data.json":
            known = parse_qs(asked.query).get("known", ["-1"])[0]
            self._data(int(known) if known.lstrip("-").isdigit() else -1)
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", "nothing here")

    def _is_ours(self) -> bool:
        """Whether the request names this server, or it is meant for other machines."""
        name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        return self._host not in LOCAL or name in LOCAL

    def _data(self, known: int) -> None:
        """The run as it is; trees of its last iteration, where the page does not know it."""
        try:
            data = latest(self._folder, known, self._limit)
        except RolloutFileError as error:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", str(error))
            return
        text = json.dumps(data, ensure_ascii=False, allow_nan=False)
        self._answer(HTTPStatus.OK, "application/json", text)

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
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
        """Say nothing: a page asks every two seconds."""


def latest(folder: Path, known: int, limit: int) -> dict[str, object]:
    """What a page that knows iteration `known` is told; see `page_data`.

    Raises:
        RolloutFileError: there is no run yet.
    """
    told = {int(line["iteration"]) for line in read_metrics(folder)}  # written after its trees
    try:
        newest = max((n for n in list_iterations(folder) if n in told), default=known)
    except RolloutFileError:
        newest = known
    return page_data(folder, () if newest == known else (newest,), limit)
