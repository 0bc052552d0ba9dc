"""Reading the web: fetching, extraction, rate limits and retries.

browse          the browse tool
pages           fetches pages
reader          extracts text in a child process
reader_child    the program of that process
sanitize        makes text from outside safe to show
addresses       which addresses may be read
http_client     HTTP with hard limits
service_client  HTTP to one service, kept open
retries         retries and circuit breaking
rate_limits     pace and failures by host
"""

from __future__ import annotations

from tools.web.browse import BrowseTool
from tools.web.http_client import Reply, failure
from tools.web.pages import WebPages
from tools.web.rate_limits import Fault, Limits, Traffic
from tools.web.retries import Guard, within
from tools.web.sanitize import cut, one_line
from tools.web.service_client import ServiceClient

__all__ = [
    "BrowseTool",
    "Fault",
    "Guard",
    "Limits",
    "Reply",
    "ServiceClient",
    "Traffic",
    "WebPages",
    "cut",
    "failure",
    "one_line",
    "within",
]
