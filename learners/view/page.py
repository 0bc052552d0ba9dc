"""Builds the viewer's HTML page from its assets and the data of a run.

The page is one file that needs no network. Its content security policy admits its own script and
style by their hashes; the run's text enters as JSON that no parser can take for markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).with_name("assets")

SCRIPTS = ("model.js", "tree.js", "text.js", "decide.js", "ledger.js", "panes.js", "app.js")
"""Scripts in the order in which the page runs them."""


def build_page(data: dict[str, Any] | None) -> str:
    """Build one self-contained HTML page.

    Args:
        data: from `collect_page_data`; None: the page asks the server that it came from.
    """
    script = "\n".join(_read_asset(name) for name in SCRIPTS)
    script = f'"use strict";\n{script}'
    style = _read_asset("page.css")
    html = _read_asset("page.html")
    parts = {
        "{{POLICY}}": build_security_policy(script, style, live=data is None),
        "{{STYLE}}": style,
        "{{SCRIPT}}": script,
        "{{DATA}}": escape_json(data),
    }
    # The data goes in last: a run's text may contain a placeholder, which must stay text.
    for placeholder, text in parts.items():
        html = html.replace(placeholder, text, 1)
    return html


def build_security_policy(script: str, style: str, live: bool) -> str:
    """Build the content security policy: this script and this style, nothing else.

    Args:
        script: the whole text of the script element.
        style: the whole text of the style element.
        live: the page may also fetch data from its own server.
    """
    connect = "; connect-src 'self'" if live else ""
    return (
        f"default-src 'none'; script-src '{_hash_source(script)}'; "
        f"style-src '{_hash_source(style)}'; base-uri 'none'; form-action 'none'{connect}"
    )


def escape_json(data: object) -> str:
    """Encode as JSON without any character that an HTML or JavaScript parser treats specially."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _read_asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash_source(text: str) -> str:
    """The policy's name for a text: its SHA-256."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
