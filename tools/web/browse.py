"""The browse tool: an address to the page's main text and its links."""

from __future__ import annotations

import json
import re
import time
from functools import partial

from tools.cache import Answer, Cache, Request
from tools.tool import ToolContext, ToolResult, ToolUnavailable
from tools.web.addresses import Refused
from tools.web.pages import Fetched, WebPages, tidy_url
from tools.web.reader import Page
from tools.web.sanitize import cut, lines, one_line

REFUSAL_LASTS_S = 600.0
"""How long a recording believes that a page cannot be read."""


_LINKS_PER_PART = 30


_LINK_CHARACTERS = 80


_LONGEST_LINK = 500


_CALL = re.compile(r"\s*(\S+)(?:\s+(?:part\s+)?(\d{1,4}))?\s*", re.IGNORECASE)


class BrowseTool:
    """Reads web pages. Stateless, so that every fork shares it."""

    name = "browse"
    description = (
        "Reads the web page at an address and returns its text and links; write a number after the"
        " address to read a further part of a long page."
    )

    def __init__(self, pages: WebPages, cache: Cache | None = None, characters: int = 6000) -> None:
        """A browse tool; nothing is opened before the first `run`.

        Args:
            pages: who gets the pages.
            cache: keeps what the web said, pages that could not be read among it.
            characters: of text in one part of a page.
        """
        if characters < 1:
            raise ValueError(f"characters must be at least 1, not {characters}")
        self._pages, self._cache, self._characters = pages, cache, characters

    def initial_state(self, context: ToolContext) -> None:
        """None: what was read before changes nothing."""
        return None

    def run(self, state: None, argument: str) -> tuple[None, ToolResult]:
        """Read the page at an address, `URL` or `URL part`.

        Raises:
            ToolUnavailable: the host or the network is out of order.
            ReplayMiss: the cache replays, and does not hold the page.
        """
        start = time.perf_counter()
        asked = 0 if self._cache is None else self._cache.asked()
        try:
            text, ok = self._answer(argument), True
        except Refused as refusal:
            text, ok = one_line(str(refusal)), False
        free = self._cache is not None and self._cache.asked() == asked
        return None, ToolResult(text, ok, time.perf_counter() - start, free)

    def close(self) -> None:
        """Close what fetches the pages, and the cache."""
        self._pages.close()
        if self._cache is not None:
            self._cache.close()

    def _answer(self, argument: str) -> str:
        call = _CALL.fullmatch(argument)
        if call is None:
            raise Refused("Write one address, and after it a number to read a further part.")
        fetched = self._fetched(tidy_url(call[1]).geturl())
        return _shown(fetched, int(call[2] or 1), self._characters)

    def _fetched(self, url: str) -> Fetched:
        if self._cache is None:
            return self._pages.fetch(url)
        request: Request = {"source": "browse", "url": url}
        text = self._cache.answer(request, partial(self._ask, url))
        if text is None:
            raise Refused("The page is not in the recording.")
        return _unpacked(text, url)

    def _ask(self, url: str) -> Answer:
        try:
            found = self._pages.fetch(url)
        except Refused as refusal:
            return Answer(json.dumps({"refusal": str(refusal)}), REFUSAL_LASTS_S)
        return Answer(json.dumps({"url": found.url, **found.page._asdict()}))


def _unpacked(text: str, url: str) -> Fetched:
    try:
        row = json.loads(text)
        if "refusal" in row:
            raise Refused(row["refusal"])
        links = tuple((str(label), str(target)) for label, target in row["links"])
        return Fetched(row["url"], Page(row["title"], row["text"], links))
    except (KeyError, TypeError, ValueError) as error:
        raise ToolUnavailable(f"the cache holds no page for {url}") from error


def _shown(fetched: Fetched, part: int, characters: int) -> str:
    text = lines(fetched.page.text)
    links = [link for link in fetched.page.links if len(link[1]) <= _LONGEST_LINK]
    parts = max(1, -(-len(text) // characters), -(-len(links) // _LINKS_PER_PART))
    if part > parts or part < 1:
        raise Refused(f"The page has {parts} part{'s' if parts > 1 else ''}.")
    shown = [f"{cut(one_line(fetched.page.title), 300)}", f"Address: {one_line(fetched.url)}"]
    if parts > 1:
        shown.append(f"Part {part} of {parts}")
    shown.append("\n" + text[(part - 1) * characters : part * characters].strip())
    first = (part - 1) * _LINKS_PER_PART
    listed = links[first : first + _LINKS_PER_PART]
    if listed:
        shown.append("\nLinks:")
        shown += [
            f"{cut(one_line(label), _LINK_CHARACTERS)}: {one_line(target)}".lstrip(": ")
            for label, target in listed
        ]
    return "\n".join(shown).strip()
