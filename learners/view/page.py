"""TODO."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).with_name("assets")


SCRIPTS = ("model.js", "tree.js", "text.js", "decide.js", "app.js")


def page(data: dict[str, Any] | None) -> str:
    """One self-contained HTML page.

    Args:
        data: of `page_data`; None: the page asks the server that it came from.
    """
    script = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'"use strict";\n{script}'
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    html = (ASSETS / "page.html").read_text(encoding="utf-8")
    parts = {
        "{{POLICY}}": policy(script, style, live=data is None),
        "{{STYLE}}": style,
        "{{SCRIPT}}": script,
        "{{DATA}}": escaped(data),
    }
    for mark, text in parts.items():  # the run's own text last: it may look like a mark
        html = html.replace(mark, text, 1)
    return html


def policy(script: str, style: str, live: bool) -> str:
    """The content security policy: this script, this style, and nothing else."""
    asked = "; connect-src 'self'" if live else ""
    return (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        f"base-uri 'none'; form-action 'none'{asked}"
    )


def escaped(data: object) -> str:
    """JSON that no HTML parser reads as anything but text."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
