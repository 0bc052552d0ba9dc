import ipaddress
import itertools
import socket
import subprocess

import pytest

from tests import needs
from tests.page_site import ARTICLE, open_browser, read_refusal, serve_site, url_of
from tools.tool import ToolUnavailable
from tools.web.addresses import AddressPolicy, Refused, is_public

needs.packages("httpx", "trafilatura", "lxml_html_clean", "pypdf")


PRIVATE = [
    *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1"),
    *("169.254.169.254", "100.100.100.200", "0.0.0.0", "224.0.0.1"),
    *("255.255.255.255", "168.63.129.16", "192.0.0.192", "198.18.0.1"),
    *("::1", "::", "fe80::1", "fd00:ec2::254"),
    *("ff02::1", "fec0::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254"),
    *(
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:80ff:fffe",
    ),
    *("::127.0.0.1", "64:ff9b:1::1"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_behind_the_firewall_is_refused(address):
    assert not is_public(ipaddress.ip_address(address))
    with pytest.raises(Refused, match="not on the public web"):
        AddressPolicy(resolver=lambda *_: ["93.184.216.34", address]).resolve("evil.test", 80)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:4700::1", "64:ff9b::5db8:d822"])
def test_a_public_address_may_be_reached_on_the_ports_of_the_web(address):
    policy = AddressPolicy(resolver=lambda *_: [address])
    assert policy.resolve("good.test", 443) == address
    with pytest.raises(Refused, match="Port 22"):
        policy.resolve("good.test", 22)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "[::1]", "0"]
)
def test_no_spelling_reaches_this_machine(host):
    with serve_site({"/": (200, {}, ARTICLE)}) as server, open_browser(allow=()) as browse:
        text = read_refusal(browse, f"http://{host}:{server.server_address[1]}/")
        assert "public web" in text or "host" in text
        assert server.requests == []


def test_a_redirect_behind_the_firewall_is_refused():
    with serve_site({"/": (200, {}, b"secret")}, host="127.0.0.2") as inside:
        secret = f"http://127.0.0.2:{inside.server_address[1]}/"
        with (
            serve_site({"/": (302, {"Location": secret}, b"")}) as server,
            open_browser(allow=("127.0.0.1/32",)) as browse,
        ):
            assert "not on the public web" in read_refusal(browse, url_of(server))
            assert inside.requests == []


def test_a_name_server_that_changes_its_mind_gains_nothing():
    """A name is public at first and internal ever after; requests go to the first address."""
    with serve_site({"/": (200, {}, ARTICLE)}) as outside:
        port = outside.server_address[1]
        with serve_site({"/": (200, {}, b"secret")}, host="127.0.0.2", port=port) as inside:
            answers = itertools.chain([["127.0.0.1"]], itertools.repeat(["127.0.0.2"]))
            with open_browser(("127.0.0.1/32",), resolver=lambda *_: next(answers)) as browse:
                assert "volcano" in browse(f"http://rebind.test:{port}/").text
                assert "not on the public web" in read_refusal(
                    browse, f"http://rebind.test:{port}/"
                )
            assert outside.requests[0][1]["Host"] == f"rebind.test:{port}"
            assert inside.requests == []


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(socket.EAI_NONAME, "There is no host"), (socket.EAI_AGAIN, ToolUnavailable)],
)
def test_a_name_that_does_not_exist_is_the_models_mistake_and_a_dead_resolver_is_not(
    error, outcome
):
    def resolve(host, port):
        raise socket.gaierror(error, "raised by the test")

    with open_browser(resolver=resolve) as browse:
        if isinstance(outcome, str):
            assert outcome in read_refusal(browse, "http://nowhere.test/")
        else:
            with pytest.raises(outcome, match="cannot resolve"):
                browse("http://nowhere.test/")


def test_a_certificate_is_that_of_the_name_and_not_of_the_address(tmp_path, monkeypatch):
    certificate = tmp_path / "both.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout k -out c -days 1 -subj /CN=good.test"
    )
    name = ["-addext", "subjectAltName=DNS:good.test"]
    try:
        made = subprocess.run([*command.split(), *name], capture_output=True, cwd=tmp_path)
    except FileNotFoundError:
        needs.lacking("openssl", "apt-get install openssl", "in CI where its image has it")
    assert made.returncode == 0, made.stderr
    certificate.write_bytes((tmp_path / "k").read_bytes() + (tmp_path / "c").read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "c"))
    with serve_site({"/": (200, {}, ARTICLE)}, certificate=certificate) as server:
        port = server.server_address[1]
        with open_browser(resolver=lambda *_: ["127.0.0.1"]) as browse:
            assert "volcano" in browse(f"https://good.test:{port}/").text
            assert "certificate" in read_refusal(browse, f"https://evil.test:{port}/")
