"""The search tool and its retrievers.

tool         the search tool
retrievers   the Retriever protocol, BM25 in memory, rank fusion
local_index  BM25 on disk
dense        vectors on disk
remote       a retrieval service, and recorded answers
server       serves a retriever over HTTP
web          web search through ddgs
opening      opens a retriever by name
"""

from __future__ import annotations

from tools.search import dense, local_index, server
from tools.search.opening import open_retriever
from tools.search.retrievers import Hit, MemoryRetriever, Retriever
from tools.search.tool import SearchTool

__all__ = [
    "Hit",
    "MemoryRetriever",
    "Retriever",
    "SearchTool",
    "dense",
    "local_index",
    "open_retriever",
    "server",
]
