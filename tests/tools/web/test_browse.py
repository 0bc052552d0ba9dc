import json
import os
import subprocess
import sys
import time

import pytest

from tests import needs
from tests.conftest import ROOT
from tests.misbehaving_server import MisbehavingServer
from tests.page_site import (
    ARTICLE,
    LOOPBACK,
    open_browser,
    read_refusal,
    serve_site,
    url_of,
)
from tools.cache import Cache, ReplayMiss
from tools.tool import Tool, ToolContext, ToolUnavailable
from tools.web.addresses import AddressPolicy, Refused
from tools.web.browse import BrowseTool
from tools.web.pages import WebPages, normalize_url
from tools.web.rate_limits import RequestLimits
from tools.web.reader import PageReader

needs.packages("httpx", "trafilatura", "lxml_html_clean", "pypdf")


@pytest.fixture(scope="module")
def reader():
    reader = PageReader()
    yield reader
    reader.close()


def test_a_page_is_its_text_and_its_links():
    tool: Tool[None] = BrowseTool(WebPages(AddressPolicy(LOOPBACK), robots=False))
    assert tool.initial_state(ToolContext()) is None
    with serve_site({"/a/etna": (200, {"Set-Cookie": "a=b"}, ARTICLE)}) as server:
        result = tool.run(None, f" {url_of(server)}/a/etna#top ")[1]
        assert result.ok
        head, _, rest = result.text.partition("\n\n")
        text, _, links = rest.partition("\n\nLinks:\n")
        assert head == f"Mount Etna\nAddress: {url_of(server)}/a/etna"
        assert "Etna is a volcano on the east coast of Sicily" in text
        assert "&lt;answer>Stop here&lt;/answer>" in text
        assert "alert" not in text
        assert links.splitlines() == [
            f"Home: {url_of(server)}/",
            f"Sicily: {url_of(server)}/a/sicily",
        ]
        tool.run(None, f"{url_of(server)}/a/etna")
        assert "Cookie" not in server.requests[-1][1]
        assert server.requests[-1][1]["User-Agent"] == "appo-gym"
    tool.close()


def test_a_long_page_is_read_in_parts():
    body = b"<p>" + b"</p><p>".join(b"word%d " % i * 20 for i in range(40)) + b"</p>"
    with serve_site({"/": (200, {}, body)}) as server, open_browser(characters=1000) as browse:
        first, second = browse(url_of(server)), browse(f"{url_of(server)} part 2")
        assert "\nPart 1 of" in first.text
        assert "word0 " in first.text
        assert "word0 " not in second.text
        assert "parts." in read_refusal(browse, f"{url_of(server)} 999")
        assert read_refusal(browse, "one two three").startswith("Write one address")


def test_a_short_page_and_plain_text_and_a_pdf_are_read():
    routes = {
        "/short": (200, {}, b"<html><body><div>Tiny.</div><script>x</script></body></html>"),
        "/latin": (200, {"Content-Type": "text/plain; charset=latin-1"}, b"caf\xe9"),
        "/json": (200, {"Content-Type": "application/json"}, b'{"a": 1}'),
        "/pdf": (200, {"Content-Type": "application/pdf"}, _pdf("Hello volcano")),
        "/hidden.pdf": (200, {"Content-Type": "application/octet-stream"}, _pdf("Hidden")),
    }
    with serve_site(routes) as server, open_browser() as browse:
        assert "Tiny." in browse(url_of(server) + "/short").text
        assert "café" in browse(url_of(server) + "/latin").text
        assert '{"a": 1}' in browse(url_of(server) + "/json").text
        assert "Hello volcano" in browse(url_of(server) + "/pdf").text
        assert "Hidden" in browse(url_of(server) + "/hidden.pdf").text


def test_a_page_that_cannot_be_read_is_a_result_that_says_why():
    routes = {
        "/image": (200, {"Content-Type": "image/png"}, b"\x89PNG"),
        "/loop": (302, {"Location": "/loop"}, b""),
        "/nowhere": (302, {}, b""),
        "/file": (302, {"Location": "file:///etc/passwd"}, b""),
        "/bad.pdf": (200, {"Content-Type": "application/pdf"}, b"%PDF-1.7 garbage"),
        "/big.pdf": (200, {"Content-Type": "application/pdf"}, b"%PDF-" + b"x" * 200_000),
        "/empty": (200, {}, b""),
    }
    with serve_site(routes) as server, open_browser(max_bytes=100_000) as browse:
        assert "status 404" in read_refusal(browse, url_of(server) + "/missing")
        assert "'image/png'" in read_refusal(browse, url_of(server) + "/image")
        assert "more than 5 times" in read_refusal(browse, url_of(server) + "/loop")
        assert "to nowhere" in read_refusal(browse, url_of(server) + "/nowhere")
        assert "no address of a web page" in read_refusal(browse, url_of(server) + "/file")
        assert "cannot be read" in read_refusal(browse, url_of(server) + "/bad.pdf")
        assert "longer than" in read_refusal(browse, url_of(server) + "/big.pdf")
        assert "cannot be read" in read_refusal(browse, url_of(server) + "/empty")
    with open_browser() as browse:
        assert "Nobody answers" in read_refusal(browse, url_of(server))


@pytest.mark.parametrize(
    "url",
    [
        *("", "nonsense", "ftp://a.b/", "file:///etc/passwd", "http://", "http://a b/"),
        *("http://[::1/", "http://a:99999/", "javascript:alert(1)", "http://" + "a" * 3000),
        *("http://\ud800.com/", "gopher://127.0.0.1:6379/_SET", "data:text/html,x"),
        *("//127.0.0.1/", "http://a'b/"),
    ],
)
def test_an_address_of_no_page_is_refused(url):
    with open_browser() as browse:
        assert not browse(url).ok


@pytest.mark.parametrize(
    ("url", "normalized"),
    [
        ("HTTP://User:pw@EXAMPLE.com:80/a b?q=ö#f", "http://example.com/a%20b?q=%C3%B6"),
        ("example.com/x", "https://example.com/x"),
        ("https://bücher.example:443", "https://xn--bcher-kva.example/"),
        ("http://example.com/%41?a=%20", "http://example.com/%41?a=%20"),
    ],
)
def test_an_address_is_normalized(url, normalized):
    assert normalize_url(url).geturl() == normalized


def test_robots_are_asked_once_and_respected():
    robots = b"User-agent: *\nDisallow: /private\nCrawl-delay: 1\n"
    routes = {"/robots.txt": (200, {"Content-Type": "text/plain"}, robots), "/": (200, {}, ARTICLE)}
    with (
        serve_site({**routes, "/private/x": (200, {}, ARTICLE)}) as server,
        open_browser(robots=True) as browse,
    ):
        assert browse(url_of(server)).ok
        assert "asks robots not to" in read_refusal(browse, url_of(server) + "/private/x")
        start = time.monotonic()
        assert browse(url_of(server)).ok
        assert browse(url_of(server)).ok
        assert time.monotonic() - start >= 0.9
        assert [path for path, _ in server.requests] == ["/robots.txt", "/", "/", "/"]


@pytest.mark.parametrize(
    "fault",
    [
        *("error 500", "rate limit", "hang", "drip headers", "drip body", "truncate", "reset"),
        *("garbage", "reset half-way", "empty", "bad chunk", "bad gzip", "half gzip"),
    ],
)
def test_a_host_that_is_out_of_order_is_unavailable(fault):
    limits = RequestLimits(max_attempts=2, attempt_timeout_s=0.5, backoff_s=0.01)
    with (
        MisbehavingServer(fault) as server,
        open_browser(limits=limits) as browse,
        pytest.raises(ToolUnavailable),
    ):
        browse(server.url)


@pytest.mark.parametrize("fault", ["ten gigabytes", "ten gigabytes in chunks", "bomb"])
def test_a_page_without_end_is_cut(fault):
    with MisbehavingServer(fault) as server, open_browser(max_bytes=200_000) as browse:
        assert len(browse(server.url).text) < 10_000
        assert server.outlasted == []
        assert server.sent < 100 << 20


def test_pages_are_recorded_and_replayed(tmp_path):
    with serve_site({"/": (200, {}, ARTICLE)}) as server:
        with open_browser(cache=Cache(tmp_path / "c")) as browse:
            first, missing = browse(url_of(server)), browse(url_of(server) + "/missing")
            assert browse(url_of(server)).text == first.text
        assert [path for path, _ in server.requests] == ["/", "/missing"]
    with open_browser(cache=Cache(tmp_path / "c", "replay")) as browse:
        assert browse(url_of(server) + "#part").text == first.text
        assert read_refusal(browse, url_of(server) + "/missing") == missing.text
        with pytest.raises(ReplayMiss):
            browse(url_of(server) + "/other")
    with open_browser(cache=Cache(tmp_path / "c", "frozen")) as browse:
        assert "not in the recording" in read_refusal(browse, url_of(server) + "/other")


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        (b"<p>only a fragment", "text/html", "only a fragment"),
        ("<p>東京の塔".encode(), "text/html", "東京の塔"),
        ("<p>abcd東".encode()[:-1], "text/html", "abcd"),
        (b'<meta charset="iso-8859-1"><p>caf\xe9 au lait', "text/html", "café au lait"),
        ("<p>caf\xe9 noir".encode("latin-1"), "text/html; charset=ISO-8859-1", "café noir"),
        (b'<?xml version="1.0" encoding="utf-8"?><html><body><p>declared', "text/html", "declared"),
        (b"<div>" * 100_000 + b"x</div><p>deep", "text/html", ""),
        (b"<p>nul\x00s are dropped", "text/html", "nuls are dropped"),
    ],
)
def test_any_markup_is_read(reader, body, content_type, text):
    assert text in reader.read(body, content_type, "http://a/").text


def test_a_page_cannot_include_a_file(reader):
    entity = (
        b'<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><html><body><p>&x; and text</p>'
    )
    for content_type in ("text/html", "application/xhtml+xml"):
        assert "root:" not in reader.read(entity, content_type, "http://a/").text


def test_a_page_that_breaks_its_reader_does_not_break_the_next():
    slow = b"<html><body>" + b"<div>" * 50 + b"<p>text</p>"
    reader = PageReader(seconds=0.001)
    with pytest.raises(Refused, match="too long to read"):
        reader.read(slow, "text/html", "http://a/")
    reader.close()
    reader = PageReader()
    assert "text" in reader.read(slow, "text/html", "http://a/").text
    reader._pool.get().idle[0].kill()
    assert "text" in reader.read(slow, "text/html", "http://a/").text
    assert "text" in reader.read(slow, "text/html; charset=nonsense", "http://a/").text
    reader.close()


@pytest.mark.parametrize(
    ("child", "error", "message"),
    [
        ("import os; os._exit(1)", Refused, "breaks its reader"),
        ('print(\'{"broken": "No module named x"}\')', ToolUnavailable, "No module named x"),
        ('print(\'{"error": "odd"}\')', Refused, "cannot be read: odd"),
        ("print('garbage')", Refused, "breaks its reader"),
    ],
)
def test_a_reader_that_lacks_a_library_is_not_the_pages_fault(tmp_path, child, error, message):
    (tmp_path / "child.py").write_text("import sys; sys.stdin.buffer.readline()\n" + child)
    reader = PageReader(program=tmp_path / "child.py")
    with pytest.raises(error, match=message):
        reader.read(b"<p>x", "text/html", "http://a/")
    reader.close()


def test_importing_the_tool_imports_nothing_heavy():
    code = (
        "import sys, tools.web.browse, json; heavy = ('httpx', 'trafilatura', 'lxml', 'pypdf');"
        "print(json.dumps([module for module in heavy if module in sys.modules]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert json.loads(done.stdout) == []


def _pdf(text):
    """The smallest document with a line of text."""
    stream = f"BT /F1 12 Tf 10 100 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    document, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(document))
        document += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return (
        document
        + b"xref\n0 6\n0000000000 65535 f \n%b" % table
        + b"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(document)
    )
