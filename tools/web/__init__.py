"""Reading the web: fetching, extraction, rate limits and retries.

browse          the browse tool
pages           fetches pages
reader          extracts text in a child process
reader_child    the program of that process
sanitize        makes text from outside safe to show
addresses       decides which addresses may be read
http_client     HTTP with hard limits
service_client  HTTP to one service over kept-alive connections
retries         retries and timeouts
rate_limits     rate limits and circuit breakers by host
"""

from __future__ import annotations

from tools.web.browse import BrowseTool
from tools.web.http_client import HttpResponse, failure_from_status
from tools.web.pages import WebPages
from tools.web.rate_limits import AttemptFailed, RequestLimits, Traffic
from tools.web.retries import Retrier, call_with_timeout
from tools.web.sanitize import sanitize_line, truncate
from tools.web.service_client import ServiceClient

__all__ = [
    "AttemptFailed",
    "BrowseTool",
    "HttpResponse",
    "RequestLimits",
    "Retrier",
    "ServiceClient",
    "Traffic",
    "WebPages",
    "call_with_timeout",
    "failure_from_status",
    "sanitize_line",
    "truncate",
]
