"""Command that serves a retriever over HTTP; see `tools.search.server`."""

from __future__ import annotations

from tools.search import server

if __name__ == "__main__":
    server.main()
