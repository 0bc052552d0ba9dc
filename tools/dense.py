"""Command that builds an index of vectors; see `tools.search.dense`."""

from __future__ import annotations

from tools.search import dense

if __name__ == "__main__":
    dense.main()
