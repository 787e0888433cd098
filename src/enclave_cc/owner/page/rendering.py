"""Templates to answers, with the headers that keep a browser from running or loading anything else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import jinja2

from enclave_cc.owner.kbs.http import HttpAnswer

HTML = "text/html; charset=utf-8"
# Each kind of content is named; `'none'` for all others. No inline script or style, no other site, no frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
STATIC = {"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8", "page.svg": "image/svg+xml"}


def _make_environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["moment"] = format_moment
    environment.filters["value"] = format_value
    return environment


def format_moment(at: int | None) -> str:
    """Unix seconds as text, in UTC; whoever compares two logs wants no local time."""
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def format_value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


_ENVIRONMENT = _make_environment()


def render(template: str, *, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any) -> HttpAnswer:
    """The template `NAME.html` as an answer."""
    text = _ENVIRONMENT.get_template(f"{template}.html").render(**values)
    return HttpAnswer(status, text.encode(), HTML, {**HEADERS, **(headers or {})})


def serve_static(name: str) -> HttpAnswer | None:
    """A file of the page; None for one that there is not."""
    if name not in STATIC:
        return None
    data = resources.files(__package__).joinpath("static", name).read_bytes()
    return HttpAnswer(body=data, content_type=STATIC[name], headers={**HEADERS, "Cache-Control": "private, max-age=300"})
