"""The program that reads untrusted pages: bytes in, main text and links out, one page at a time.

`tools.web.reader` starts it, and kills it if a page takes too long. It imports nothing of this
package, so that it can run isolated. A request is a line of JSON and the bytes that it announces; a
reply is a line of JSON.
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
"""Address space of this process."""
_MAX_HTML_BYTES = 2 << 20
_MAX_PDF_PAGES = 200
_MAX_CHARACTERS = 200_000
_MAX_LINKS = 300
_MAX_ANCHORS = 3000


def main() -> None:
    """Serve until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    replies, sys.stdout = sys.stdout, sys.stderr  # what a library prints is not a reply
    while line := sys.stdin.buffer.readline():
        header = json.loads(line)
        body = sys.stdin.buffer.read(header["bytes"])
        try:
            reply = _read(header["kind"], header["charset"], header["url"], body)
        except ImportError as error:
            reply = {"broken": str(error)}
        # A page may break the libraries in any way; that is what this process is for.
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _read(kind: str, charset: str, url: str, body: bytes) -> dict[str, object]:
    if kind == "html":
        page = _read_html(body, charset, url)
    elif kind == "pdf":
        page = _read_pdf(body)
    else:
        page = {"title": "", "text": body.decode(charset or "utf-8", "replace"), "links": []}
    page["text"] = str(page["text"])[:_MAX_CHARACTERS]
    page["title"] = " ".join(str(page["title"]).split())[:300]
    return page


def _read_html(body: bytes, charset: str, url: str) -> dict[str, object]:
    import trafilatura

    body = body[:_MAX_HTML_BYTES].replace(b"\0", b"")
    tree = _parse(body, charset)
    links, title = _extract_links(tree, url), " ".join(tree.xpath("//title//text()")[:5])
    text = trafilatura.extract(tree, url=url, favor_recall=True, include_comments=False)
    return {
        "title": title,
        "text": text or _extract_all_text(_parse(body, charset)),
        "links": links,
    }


def _parse(body: bytes, charset: str) -> Any:  # noqa: ANN401 - lxml has no types
    html = import_module("lxml.html")
    if not charset:
        try:
            # Incrementally, because the last character may be cut in two.
            codecs.getincrementaldecoder("utf-8")().decode(body)
            charset = "utf-8"
        except UnicodeDecodeError:
            charset = ""  # lxml takes what the page declares, or Latin-1
    return html.document_fromstring(body, parser=html.HTMLParser(encoding=charset or None))


def _extract_all_text(tree: Any) -> str:  # noqa: ANN401 - likewise
    for hidden in tree.xpath("//script | //style | //noscript | //form | //template | //head"):
        hidden.drop_tree()
    return "\n".join(piece.strip() for piece in tree.itertext() if piece.strip())


def _extract_links(tree: Any, url: str) -> list[tuple[str, str]]:  # noqa: ANN401 - likewise
    bases = tree.xpath("//base/@href")
    base = urljoin(url, bases[0]) if bases else url
    texts: dict[str, str] = {}  # by target; a link's first text that is not empty counts
    for anchor in tree.xpath("//a[@href]")[:_MAX_ANCHORS]:
        try:
            parts = urlsplit(urljoin(base, anchor.get("href").strip()))
        except ValueError:
            continue
        target = urlunsplit(parts._replace(fragment=""))
        if parts.scheme in ("http", "https") and parts.hostname and target != url:
            texts.setdefault(target, "")
            text = " ".join(islice(anchor.itertext(), 20))
            texts[target] = texts[target] or " ".join(text.split())[:200]
        if len(texts) >= _MAX_LINKS:
            break
    return [(text, target) for target, text in texts.items()]


def _read_pdf(body: bytes) -> dict[str, object]:
    import pypdf

    document = pypdf.PdfReader(io.BytesIO(body))
    if document.is_encrypted and not document.decrypt(""):
        raise ValueError("it is locked with a password")
    pages: list[str] = []
    for page in document.pages[:_MAX_PDF_PAGES]:
        pages.append(page.extract_text())
        if sum(map(len, pages)) > _MAX_CHARACTERS:
            break
    title = document.metadata.title if document.metadata else None
    return {"title": str(title or ""), "text": "\n\n".join(pages), "links": []}


if __name__ == "__main__":
    main()
