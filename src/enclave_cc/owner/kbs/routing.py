"""A table of paths: which method and path go to which handler, and who may ask.

    /kbs/v0/resource/{repository}/{type}/{tag}    a name in braces stands for one segment
    /kbs/v0/reference-value/{id*}                 with a star: for one or more, at the end

Segments are compared and handed on as they came, never decoded: a `%2F` is three characters and no slash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from enclave_cc.owner.kbs.admin import Administrator, Role
from enclave_cc.owner.kbs.http import HttpAnswer, HttpRequest
from enclave_cc.record import record


@record
class Call:
    """A request that found its route. `administrator` is there on paths of `ADMIN` access."""

    request: HttpRequest
    parameters: Mapping[str, str]
    administrator: Administrator | None = None

    @property
    def body(self) -> bytes:
        return self.request.body

    @property
    def actor(self) -> str:
        """Whose name goes beside a change: the subject of the admin token."""
        return "" if self.administrator is None else self.administrator.subject or self.administrator.role

    @property
    def scope(self) -> Role:
        """What the administrator's role covers; nothing, when there is none."""
        return Role() if self.administrator is None else self.administrator.scope


PUBLIC, ADMIN = "public", "admin"


@record
class Route:
    """One row of the table. `access`: PUBLIC, or ADMIN for paths that need an admin token."""

    method: str
    path: str
    handler: Callable[[Call], HttpAnswer]
    access: str = ADMIN


@record
class Match:
    route: Route
    parameters: Mapping[str, str]


class Table:
    """Finds routes. The most literal path wins."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(sorted(routes, key=lambda route: (route.path.count("{"), route.path, route.method)))
        if len({(route.method, route.path) for route in self.routes}) != len(self.routes):
            raise ValueError("two routes have the same method and path")
        self._literal: dict[str, list[Route]] = {}
        self._templates: list[tuple[list[str], Route]] = []
        self._sized: dict[tuple[str, int], list[tuple[list[str], Route]]] = {}  # what may fit, by method and segments
        for route in self.routes:
            if "{" in route.path:
                self._templates.append((route.path.split("/"), route))
            else:
                self._literal.setdefault(route.path, []).append(route)
        self._longest = max((len(pattern) for pattern, _ in self._templates), default=0) + 1

    def find(self, method: str, path: str) -> Match | None:
        for route in self._literal.get(path, ()):
            if route.method == method:
                return Match(route, {})
        segments = path.split("/")
        for pattern, route in self._select(method, len(segments)):
            if (parameters := _fit(pattern, segments)) is not None:
                return Match(route, parameters)
        return None

    def _select(self, method: str, size: int) -> list[tuple[list[str], Route]]:
        key = method, min(size, self._longest)
        found = self._sized.get(key)
        if found is None:
            found = [each for each in self._templates if each[1].method == method and _may_fit(each[0], key[1])]
            if found:  # anybody can name methods that there are not
                self._sized[key] = found
        return found

    def methods(self, path: str) -> list[str]:
        """The methods that `path` knows, sorted; empty for an unknown path."""
        segments = path.split("/")
        found = {route.method for route in self._literal.get(path, ())}
        found.update(route.method for pattern, route in self._templates if _fit(pattern, segments) is not None)
        return sorted(found)


def _may_fit(pattern: list[str], size: int) -> bool:
    return size == len(pattern) or (size > len(pattern) and pattern[-1].endswith("*}"))


def _fit(pattern: list[str], segments: list[str]) -> dict[str, str] | None:
    if not _may_fit(pattern, len(segments)):
        return None
    parameters = {}
    for index, part in enumerate(pattern):
        if part.endswith("*}"):
            parameters[part[1:-2]] = "/".join(segments[index:])
        elif part.startswith("{"):
            parameters[part[1:-1]] = segments[index]
        elif part != segments[index]:
            return None
    return parameters if all(parameters.values()) else None
