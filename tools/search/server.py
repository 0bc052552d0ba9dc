"""Serves one retriever to many machines: `python -m tools.retrieval_server INDEX`.

Speaks POST /retrieve of Search-R1, POST /search and /batch_search of FlashRAG, and GET /health.
Anyone who reaches the port may search, so it binds to 127.0.0.1 by default.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from tools.search.opening import open_retriever
from tools.search.retrievers import Hit, Retriever
from tools.tool import ToolUnavailable

if TYPE_CHECKING:
    import anyio
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

RequestHandler = Callable[["Request"], Awaitable["Response"]]
Body = Mapping[str, object]

DEFAULT_TOPK = 3
MAX_TOPK = 100
MAX_QUERIES = 1024
"""Queries of one request."""
_MAX_REQUEST_BYTES = 8 << 20


class _BadRequest(ValueError):
    """The request does not follow the schema."""


def build_app(retriever: Retriever, max_requests: int = 64, threads: int = 4) -> Starlette:
    """Build the web application around a retriever.

    Args:
        retriever: answers; it must be thread-safe, as all are.
        max_requests: requests being served or waiting for a thread; more get a 503, to be retried.
        threads: that search; one more than the processor has cores is enough.
    """
    import anyio
    from starlette.applications import Starlette
    from starlette.routing import Route

    requests, searches = anyio.CapacityLimiter(max_requests), anyio.CapacityLimiter(threads)
    answers = {"/retrieve": _retrieve, "/search": _search, "/batch_search": _batch_search}
    routes = [
        Route(
            path, _search_handler(partial(answer, retriever), requests, searches), methods=["POST"]
        )
        for path, answer in answers.items()
    ]
    routes.append(Route("/health", _health_handler(retriever), methods=["GET"]))
    return Starlette(routes=routes)


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    The protocol is named because asyncio disables Nagle's delays of 40 ms only on such sockets.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(1024)
    return listener


def _health_handler(retriever: Retriever) -> RequestHandler:
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse

    async def report_health(request: Request) -> Response:
        try:
            await run_in_threadpool(retriever.search, "health", 1)
        except ToolUnavailable as error:
            return JSONResponse({"status": "unavailable", "error": str(error)}, 503)
        return JSONResponse({"status": "ok"})

    return report_health


def _search_handler(
    answer: Callable[[Body], object],
    requests: anyio.CapacityLimiter,
    searches: anyio.CapacityLimiter,
) -> RequestHandler:
    import anyio
    from starlette.responses import JSONResponse, Response

    async def handle(request: Request) -> Response:
        try:
            requests.acquire_on_behalf_of_nowait(request)
        except anyio.WouldBlock:
            return JSONResponse({"error": "busy"}, 503, {"Retry-After": "1"})
        try:
            body = _parse_body(await _read_body(request))
            result = await anyio.to_thread.run_sync(partial(answer, body), limiter=searches)
        except _BadRequest as error:
            return JSONResponse({"error": str(error)}, 400)
        except ToolUnavailable as error:
            return JSONResponse({"error": str(error)}, 503, {"Retry-After": "5"})
        finally:
            requests.release_on_behalf_of(request)
        # json.dumps escapes lone surrogates, which JSONResponse cannot encode.
        return Response(json.dumps(result), media_type="application/json")

    return handle


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_REQUEST_BYTES:
            raise _BadRequest(f"the request is longer than {_MAX_REQUEST_BYTES} bytes")
    return bytes(body)


def _parse_body(content: bytes) -> Body:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _BadRequest(f"not JSON: {error}") from error
    if not isinstance(body, dict):
        raise _BadRequest("the request is not a JSON object")
    return body


def _retrieve(retriever: Retriever, body: Body) -> object:
    queries, k = _get_queries(body, "queries"), _get_topk(body, "topk")
    scored = bool(body.get("return_scores", False))
    results = [retriever.search(query, k) for query in queries]
    return {"result": [[_item(hit, scored) for hit in hits] for hits in results]}


def _search(retriever: Retriever, body: Body) -> object:
    query, k = body.get("query"), _get_topk(body, "top_n")
    if not isinstance(query, str) or not query.strip():
        raise _BadRequest("`query` must be a text that is not empty")
    hits = retriever.search(query, k)
    documents = [_document(hit) for hit in hits]
    return [documents, [hit.score for hit in hits]] if body.get("return_score") else documents


def _batch_search(retriever: Retriever, body: Body) -> object:
    queries, k = _get_queries(body, "query"), _get_topk(body, "top_n")
    results = [retriever.search(query, k) for query in queries]
    documents = [[_document(hit) for hit in hits] for hits in results]
    scores = [[hit.score for hit in hits] for hits in results]
    return [documents, scores] if body.get("return_score") else documents


def _get_queries(body: Body, name: str) -> list[str]:
    queries = body.get(name)
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise _BadRequest(f"`{name}` must be a list of texts")
    if len(queries) > MAX_QUERIES:
        raise _BadRequest(f"`{name}` holds more than {MAX_QUERIES}")
    return queries


def _get_topk(body: Body, name: str) -> int:
    k = body.get(name)
    if k is None or k == 0:
        return DEFAULT_TOPK
    if not isinstance(k, int) or isinstance(k, bool) or not 0 < k <= MAX_TOPK:
        raise _BadRequest(f"`{name}` must be a number from 1 to {MAX_TOPK}")
    return k


def _item(hit: Hit, scored: bool) -> object:
    return {"document": _document(hit), "score": hit.score} if scored else _document(hit)


def _document(hit: Hit) -> dict[str, str]:
    contents = f'"{hit.title}"\n{hit.text}'
    identity = hashlib.sha256(contents.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return {"id": identity, "contents": contents, "title": hit.title, "text": hit.text}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.retrieval_server", description=__doc__)
    parser.add_argument("index", help="folder of an index, as for search='local'")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to bind to; by default only this machine"
    )
    parser.add_argument("--port", type=int, default=8000, help="0: any free port, which is printed")
    parser.add_argument(
        "--at-once", type=int, default=64, help="requests being served or waiting; more get a 503"
    )
    parser.add_argument("--threads", type=int, default=4, help="threads that search")
    options = parser.parse_args(arguments)
    import uvicorn

    app = build_app(open_retriever("local", options.index), options.at_once, options.threads)
    listener = listen(options.host, options.port)
    config = uvicorn.Config(app, log_level="warning", timeout_keep_alive=60)
    sys.stdout.write(f"http://{options.host}:{listener.getsockname()[1]}/retrieve\n")
    sys.stdout.flush()
    uvicorn.Server(config).run(sockets=[listener])
