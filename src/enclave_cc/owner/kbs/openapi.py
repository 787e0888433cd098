"""The description of the KBS's API (OpenAPI 3.1): `openapi.json` beside this module, kept by hand.

A test holds it against the table of routes, so that neither can have a path, method or parameter that the other lacks.
"""

from __future__ import annotations

import functools
import json
from importlib import resources


@functools.cache
def read() -> bytes:
    """The document as it is served."""
    return resources.files(__package__).joinpath("openapi.json").read_bytes()


def list_paths() -> list[str]:
    """The templates of all paths, as the table of routes spells them."""
    return [item.get("x-route", path) for path, item in json.loads(read())["paths"].items()]
