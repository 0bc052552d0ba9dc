"""The browse tool: from an address to the page's main text and its links."""

from __future__ import annotations

import json
import re
import time
from functools import partial

from tools.cache import Answer, Cache, CacheRequest
from tools.tool import ToolContext, ToolResult, ToolUnavailable
from tools.web.addresses import Refused
from tools.web.pages import FetchedPage, WebPages, normalize_url
from tools.web.reader import Page
from tools.web.sanitize import sanitize_line, sanitize_text, truncate

REFUSAL_TTL_S = 600.0
"""Lifetime of a recorded refusal."""

_LINKS_PER_PART = 30
_MAX_LABEL_CHARACTERS = 80
_MAX_LINK_CHARACTERS = 500
_MAX_TITLE_CHARACTERS = 300
_CALL = re.compile(r"\s*(\S+)(?:\s+(?:part\s+)?(\d{1,4}))?\s*", re.IGNORECASE)


class BrowseTool:
    """Reads web pages. Stateless, so that every fork shares it."""

    name = "browse"
    description = (
        "Reads the web page at an address and returns its text and links; write a number after the"
        " address to read a further part of a long page."
    )

    def __init__(self, pages: WebPages, cache: Cache | None = None, characters: int = 6000) -> None:
        """Make a browse tool; nothing is opened before the first `run`.

        Args:
            pages: fetches pages.
            cache: records the pages, and which pages could not be read.
            characters: of text in one part of a page.
        """
        if characters < 1:
            raise ValueError(f"characters must be at least 1, not {characters}")
        self._pages, self._cache, self._characters = pages, cache, characters

    def initial_state(self, context: ToolContext) -> None:
        """Return None: earlier pages do not change a later one."""
        return None

    def run(self, state: None, argument: str) -> tuple[None, ToolResult]:
        """Read the page at an address, `URL` or `URL part`.

        Raises:
            ToolUnavailable: the host or the network is out of order.
            ReplayMiss: the cache is in replay mode and does not have the page.
        """
        start = time.perf_counter()
        fetches = 0 if self._cache is None else self._cache.fetches()
        try:
            text, ok = self._answer(argument), True
        except Refused as refusal:
            text, ok = sanitize_line(str(refusal)), False
        free = self._cache is not None and self._cache.fetches() == fetches
        return None, ToolResult(text, ok, time.perf_counter() - start, free)

    def close(self) -> None:
        """Close the page client and the cache."""
        self._pages.close()
        if self._cache is not None:
            self._cache.close()

    def _answer(self, argument: str) -> str:
        call = _CALL.fullmatch(argument)
        if call is None:
            raise Refused("Write one address, and after it a number to read a further part.")
        fetched = self._fetch(normalize_url(call[1]).geturl())
        return _format_part(fetched, int(call[2] or 1), self._characters)

    def _fetch(self, url: str) -> FetchedPage:
        if self._cache is None:
            return self._pages.fetch(url)
        request: CacheRequest = {"source": "browse", "url": url}
        text = self._cache.answer(request, partial(self._fetch_for_cache, url))
        if text is None:
            raise Refused("The page is not in the recording.")
        return _deserialize(text, url)

    def _fetch_for_cache(self, url: str) -> Answer:
        try:
            fetched = self._pages.fetch(url)
        except Refused as refusal:
            return Answer(json.dumps({"refusal": str(refusal)}), REFUSAL_TTL_S)
        return Answer(json.dumps({"url": fetched.url, **fetched.page._asdict()}))


def _deserialize(text: str, url: str) -> FetchedPage:
    try:
        row = json.loads(text)
        if "refusal" in row:
            raise Refused(row["refusal"])
        links = tuple((str(label), str(target)) for label, target in row["links"])
        return FetchedPage(row["url"], Page(row["title"], row["text"], links))
    except (KeyError, TypeError, ValueError) as error:
        raise ToolUnavailable(f"the cache holds no page for {url}") from error


def _format_part(fetched: FetchedPage, part: int, characters: int) -> str:
    """Format the text and links of one part, numbered from 1, for the model."""
    text = sanitize_text(fetched.page.text)
    links = [link for link in fetched.page.links if len(link[1]) <= _MAX_LINK_CHARACTERS]
    parts = max(1, -(-len(text) // characters), -(-len(links) // _LINKS_PER_PART))
    if part > parts or part < 1:
        raise Refused(f"The page has {parts} part{'s' if parts > 1 else ''}.")
    title = truncate(sanitize_line(fetched.page.title), _MAX_TITLE_CHARACTERS)
    blocks = [title, f"Address: {sanitize_line(fetched.url)}"]
    if parts > 1:
        blocks.append(f"Part {part} of {parts}")
    blocks.append("\n" + text[(part - 1) * characters : part * characters].strip())
    first = (part - 1) * _LINKS_PER_PART
    links_of_part = links[first : first + _LINKS_PER_PART]
    if links_of_part:
        blocks.append("\nLinks:")
        blocks += [_format_link(label, target) for label, target in links_of_part]
    return "\n".join(blocks).strip()


def _format_link(label: str, target: str) -> str:
    label = truncate(sanitize_line(label), _MAX_LABEL_CHARACTERS)
    return f"{label}: {sanitize_line(target)}".lstrip(": ")
