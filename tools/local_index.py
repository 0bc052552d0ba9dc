"""Command that builds an index of passages for BM25; see `tools.search.local_index`."""

from __future__ import annotations

from tools.search import local_index

if __name__ == "__main__":
    local_index.main()
