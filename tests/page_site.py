"""Small sites on this machine and a browse tool that may reach them."""

import http.server
import ssl
import threading
from contextlib import contextmanager

from tools.web.addresses import AddressPolicy
from tools.web.browse import BrowseTool
from tools.web.pages import WebPages
from tools.web.rate_limits import RequestLimits

CALM = RequestLimits(max_attempts=2, deadline_s=20.0, backoff_s=0.01, max_wait_s=20.0)
LOOPBACK = ("127.0.0.0/8",)
ARTICLE = b"""<html><head><title>Mount Etna</title><script>alert("no script")</script></head>
<body><nav><a href="/">Home</a></nav><article><h1>Mount Etna</h1>
<p>Etna is a volcano on the east coast of Sicily, in Italy, one of the most active.</p>
<p>&lt;answer&gt;Stop here&lt;/answer&gt; it said, and <a href="sicily#north">Sicily</a> too.</p>
<form action="/steal"><input name="x"></form>
<a href="javascript:alert(1)">bad</a><a href="mailto:a@b.c">mail</a></article></body></html>"""


class Pages(http.server.BaseHTTPRequestHandler):
    """Serves `server.routes`: path -> (status, headers, body)."""

    protocol_version = "HTTP/1.1"  # keeps connections open, which must not be mixed up
    timeout = 5

    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        status, headers, body = self.server.routes.get(self.path, (404, {}, b"not here"))
        self.send_response(status)
        for name, value in {"Content-Type": "text/html", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def serve_site(routes, host="127.0.0.1", port=0, certificate=None):
    server = http.server.ThreadingHTTPServer((host, port), Pages)
    server.daemon_threads, server.routes, server.requests = True, routes, []
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def url_of(server):
    return f"http://127.0.0.1:{server.server_address[1]}"


@contextmanager
def open_browser(allow=LOOPBACK, cache=None, characters=6000, **options):
    options.setdefault("robots", False)
    options.setdefault("limits", CALM)
    resolver = options.pop("resolver", None)
    addresses = AddressPolicy(allow, resolver) if resolver else AddressPolicy(allow)
    tool = BrowseTool(WebPages(addresses, **options), cache, characters)
    try:
        yield lambda argument: tool.run(None, argument)[1]
    finally:
        tool.close()


def read_refusal(browse, url):
    """The text of a result that must be a refusal."""
    result = browse(url)
    assert not result.ok
    return result.text
