"""Which of our own modules a measured program can reach: the closure of its import statements.

Deferred imports inside functions count too: what may be loaded later must be measured now.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = "enclave_cc"


def compute_closure(entry: str, source: Path) -> dict[str, Path]:
    """Module name -> file, for `entry` and all it imports of `enclave_cc`; `source` is the package's directory.

    Parent packages are part of it, because importing a module runs their `__init__`.
    """
    found: dict[str, Path] = {}
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        file = _find(name, source)
        if name in found or file is None:
            continue
        found[name] = file
        if "." in name:
            waiting.append(name.rpartition(".")[0])
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        waiting.extend(_imports(ast.parse(file.read_bytes()), package))
    return dict(sorted(found.items()))


def _imports(tree: ast.AST, package: str) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            names.append(base)
            names += [f"{base}.{alias.name}" for alias in node.names]  # a name may be a submodule; _find tells
    return [name for name in names if name == PACKAGE or name.startswith(PACKAGE + ".")]


def _find(name: str, source: Path) -> Path | None:
    place = source.joinpath(*name.split(".")[1:])
    for candidate in (place / "__init__.py", place.with_suffix(".py") if place != source else None):
        if candidate is not None and candidate.is_file():
            return candidate
    return None
