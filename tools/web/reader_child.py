"""The program that reads untrusted pages: bytes in, main text and links out, one at a time.

Started by `tools.web.reader`, which kills it when a page takes too long. It imports nothing of
this package, so that it can run isolated. A request is a line of JSON and the bytes it announces;
a response is a line of JSON.
"""

from __future__ import annotations

import codecs
import io
import json
import logging
import resource
import sys
from importlib import import_module
from itertools import islice
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

_MEMORY_BYTES = 3 << 30


_HTML_BYTES = 2 << 20


_PDF_PAGES = 200


_CHARACTERS = 200_000


_LINKS = 300


_ANCHORS = 3000


def _html(body: bytes, charset: str, url: str) -> dict[str, object]:
    import trafilatura

    body = body[:_HTML_BYTES].replace(b"\0", b"")
    tree = _tree(body, charset)
    links, title = _links(tree, url), " ".join(tree.xpath("//title//text()")[:5])
    text = trafilatura.extract(tree, url=url, favor_recall=True, include_comments=False)
    return {"title": title, "text": text or _all_text(_tree(body, charset)), "links": links}


def _tree(body: bytes, charset: str) -> Any:  # noqa: ANN401 - lxml has no types
    html = import_module("lxml.html")
    if not charset:
        try:
            # Not at once: the last character may be cut in two.
            codecs.getincrementaldecoder("utf-8")().decode(body)
            charset = "utf-8"
        except UnicodeDecodeError:
            charset = ""  # what the page says, or Latin-1
    return html.document_fromstring(body, parser=html.HTMLParser(encoding=charset or None))


def _all_text(tree: Any) -> str:  # noqa: ANN401 - likewise
    for hidden in tree.xpath("//script | //style | //noscript | //form | //template | //head"):
        hidden.drop_tree()
    return "\n".join(piece.strip() for piece in tree.itertext() if piece.strip())


def _links(tree: Any, url: str) -> list[tuple[str, str]]:  # noqa: ANN401 - likewise
    bases = tree.xpath("//base/@href")
    base = urljoin(url, bases[0]) if bases else url
    found: dict[str, str] = {}
    for anchor in tree.xpath("//a[@href]")[:_ANCHORS]:
        try:
            parts = urlsplit(urljoin(base, anchor.get("href").strip()))
        except ValueError:
            continue
        target = urlunsplit(parts._replace(fragment=""))
        if parts.scheme in ("http", "https") and parts.hostname and target != url:
            found.setdefault(target, "")
            text = " ".join(islice(anchor.itertext(), 20))
            found[target] = found[target] or " ".join(text.split())[:200]
        if len(found) >= _LINKS:
            break
    return [(text, target) for target, text in found.items()]


def _pdf(body: bytes) -> dict[str, object]:
    import pypdf

    document = pypdf.PdfReader(io.BytesIO(body))
    if document.is_encrypted and not document.decrypt(""):
        raise ValueError("it is locked with a password")
    pages: list[str] = []
    for page in document.pages[:_PDF_PAGES]:
        pages.append(page.extract_text())
        if sum(map(len, pages)) > _CHARACTERS:
            break
    title = document.metadata.title if document.metadata else None
    return {"title": str(title or ""), "text": "\n\n".join(pages), "links": []}


def _read(kind: str, charset: str, url: str, body: bytes) -> dict[str, object]:
    if kind == "html":
        page = _html(body, charset, url)
    elif kind == "pdf":
        page = _pdf(body)
    else:
        page = {"title": "", "text": body.decode(charset or "utf-8", "replace"), "links": []}
    page["text"] = str(page["text"])[:_CHARACTERS]
    page["title"] = " ".join(str(page["title"]).split())[:300]
    return page


def main() -> None:
    """Serve until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    answers, sys.stdout = sys.stdout, sys.stderr
    while line := sys.stdin.buffer.readline():
        asked = json.loads(line)
        body = sys.stdin.buffer.read(asked["bytes"])
        try:
            answer = _read(asked["kind"], asked["charset"], asked["url"], body)
        except ImportError as error:
            answer = {"broken": str(error)}
        # Whatever else a page breaks in the libraries is its own fault, and this program's purpose.
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
