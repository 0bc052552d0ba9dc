"""Serves one retriever to many machines: `python -m tools.retrieval_server INDEX`.

Speaks POST /retrieve of Search-R1, POST /search and /batch_search of FlashRAG, and GET /health.
Anyone who reaches the port may ask, so it binds to 127.0.0.1 unless told otherwise.
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


Endpoint = Callable[["Request"], Awaitable["Response"]]

DEFAULT_TOPK = 3


MOST_TOPK = 100


MOST_QUERIES = 1024
"""Of one request."""


_MOST_BYTES = 8 << 20


class _Mistake(ValueError):
    """What was asked is not of the schema."""


def application(retriever: Retriever, at_once: int = 64, threads: int = 4) -> Starlette:
    """The web application around a retriever.

    Args:
        retriever: answers; it must be thread-safe, as all are.
        at_once: requests in work or waiting for a thread; more are told to come again (503).
        threads: that search; one more than the processor has cores is enough.
    """
    import anyio
    from starlette.applications import Starlette
    from starlette.routing import Route

    working, searching = anyio.CapacityLimiter(at_once), anyio.CapacityLimiter(threads)
    answers = {"/retrieve": _retrieve, "/search": _search, "/batch_search": _batch_search}
    routes = [
        Route(path, _endpoint(partial(answer, retriever), working, searching), methods=["POST"])
        for path, answer in answers.items()
    ]
    routes.append(Route("/health", _health(retriever), methods=["GET"]))
    return Starlette(routes=routes)


def _health(retriever: Retriever) -> Endpoint:
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse

    async def health(request: Request) -> Response:
        try:
            await run_in_threadpool(retriever.search, "health", 1)
        except ToolUnavailable as error:
            return JSONResponse({"status": "unavailable", "error": str(error)}, 503)
        return JSONResponse({"status": "ok"})

    return health


def _endpoint(
    answer: Callable[[Mapping[str, object]], object],
    working: anyio.CapacityLimiter,
    searching: anyio.CapacityLimiter,
) -> Endpoint:
    import anyio
    from starlette.responses import JSONResponse

    async def endpoint(request: Request) -> Response:
        try:
            working.acquire_on_behalf_of_nowait(request)
        except anyio.WouldBlock:
            return JSONResponse({"error": "busy"}, 503, {"Retry-After": "1"})
        try:
            wanted = _parsed(await _body(request))
            found = await anyio.to_thread.run_sync(partial(answer, wanted), limiter=searching)
        except _Mistake as mistake:
            return JSONResponse({"error": str(mistake)}, 400)
        except ToolUnavailable as error:
            return JSONResponse({"error": str(error)}, 503, {"Retry-After": "5"})
        finally:
            working.release_on_behalf_of(request)
        # json.dumps keeps lone surrogates as escapes, which JSONResponse cannot encode.
        return _json_response(json.dumps(found))

    return endpoint


def _json_response(text: str) -> Response:
    from starlette.responses import Response

    return Response(text, media_type="application/json")


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_BYTES:
            raise _Mistake(f"the request is longer than {_MOST_BYTES} bytes")
    return bytes(body)


def _parsed(body: bytes) -> Mapping[str, object]:
    try:
        wanted = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _Mistake(f"not JSON: {error}") from error
    if not isinstance(wanted, dict):
        raise _Mistake("the request is no JSON object")
    return wanted


def _retrieve(retriever: Retriever, wanted: Mapping[str, object]) -> object:
    queries, k = _queries(wanted, "queries"), _topk(wanted, "topk")
    scored = bool(wanted.get("return_scores", False))
    found = [retriever.search(query, k) for query in queries]
    return {"result": [[_item(hit, scored) for hit in hits] for hits in found]}


def _search(retriever: Retriever, wanted: Mapping[str, object]) -> object:
    query, k = wanted.get("query"), _topk(wanted, "top_n")
    if not isinstance(query, str) or not query.strip():
        raise _Mistake("`query` must be a text that is not empty")
    hits = retriever.search(query, k)
    documents = [_document(hit) for hit in hits]
    return [documents, [hit.score for hit in hits]] if wanted.get("return_score") else documents


def _batch_search(retriever: Retriever, wanted: Mapping[str, object]) -> object:
    queries, k = _queries(wanted, "query"), _topk(wanted, "top_n")
    found = [retriever.search(query, k) for query in queries]
    documents = [[_document(hit) for hit in hits] for hits in found]
    scores = [[hit.score for hit in hits] for hits in found]
    return [documents, scores] if wanted.get("return_score") else documents


def _queries(wanted: Mapping[str, object], name: str) -> list[str]:
    queries = wanted.get(name)
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise _Mistake(f"`{name}` must be a list of texts")
    if len(queries) > MOST_QUERIES:
        raise _Mistake(f"`{name}` holds more than {MOST_QUERIES}")
    return queries


def _topk(wanted: Mapping[str, object], name: str) -> int:
    k = wanted.get(name)
    if k is None or k == 0:
        return DEFAULT_TOPK
    if not isinstance(k, int) or isinstance(k, bool) or not 0 < k <= MOST_TOPK:
        raise _Mistake(f"`{name}` must be a number from 1 to {MOST_TOPK}")
    return k


def _item(hit: Hit, scored: bool) -> object:
    return {"document": _document(hit), "score": hit.score} if scored else _document(hit)


def _document(hit: Hit) -> dict[str, str]:
    contents = f'"{hit.title}"\n{hit.text}'
    name = hashlib.sha256(contents.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return {"id": name, "contents": contents, "title": hit.title, "text": hit.text}


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections.

    asyncio turns Nagle's delays of 40 ms off only where the protocol is named, as here.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    listening.listen(1024)
    return listening


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.retrieval_server", description=__doc__)
    parser.add_argument("index", help="folder of an index, as for search='local'")
    parser.add_argument("--host", default="127.0.0.1", help="who can reach it: this machine only")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free, printed")
    parser.add_argument("--at-once", type=int, default=64, help="requests in work or waiting")
    parser.add_argument("--threads", type=int, default=4, help="that search")
    given = parser.parse_args(arguments)
    import uvicorn

    app = application(open_retriever("local", given.index), given.at_once, given.threads)
    listening = listen(given.host, given.port)
    config = uvicorn.Config(app, log_level="warning", timeout_keep_alive=60)
    sys.stdout.write(f"http://{given.host}:{listening.getsockname()[1]}/retrieve\n")
    sys.stdout.flush()
    uvicorn.Server(config).run(sockets=[listening])
