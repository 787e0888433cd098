"""What a policy's variables stand for: `sgx := input.sgx`, `some s in input.submods`, `import input.sgx as s`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enclave_cc.owner.policy import syntax


class Scope:
    """Paths by variable. Grows by `bind`, statement by statement."""

    def __init__(self, named: Mapping[str, syntax.Path] = {}) -> None:
        self._named = dict(named)

    @classmethod
    def of_module(cls, module: syntax.Module) -> Scope:
        """What imports and rules without conditions name."""
        scope = cls()
        for text in module.imports:
            words = text.split()
            if len(words) > 1 and words[1].split(".")[0] in ("input", "data"):
                parts = tuple(words[1].split("."))
                scope._named[words[3] if len(words) > 3 else parts[-1]] = parts
        for rule in module.rules:  # `plugin := data.plugin`
            if rule.kind == syntax.COMPLETE and not rule.bodies and len(module.find(rule.name)) == 1:
                path = scope.path_of(rule.value)
                if path is not None:
                    scope._named[rule.name] = path
        return scope

    def copy(self) -> Scope:
        return Scope(self._named)

    def set(self, variable: str, path: syntax.Path | None) -> None:
        self._named.pop(variable, None)
        if path is not None:
            self._named[variable] = path

    def bind(self, statement: syntax.Statement) -> None:
        """Takes in what `statement` assigns; of an `every`, its variable (which is seen inside it only)."""
        kind, inner = statement.kind, statement.node[statement.kind]
        if kind == "SomeIn":
            self._bind_variable(inner["value"], inner["collection"], each=True)
        elif kind == "Every":
            path = self.path_of(inner["domain"])
            variable = statement.loop.split(" in ", 1)[0].rsplit(" ", 1)[-1]
            self.set(variable, None if path is None else (*path, None))
        elif "AssignExpr" in statement.expression:
            assign = statement.expression["AssignExpr"]
            self._bind_variable(assign["lhs"], assign["rhs"], each=False)

    def _bind_variable(self, variable: Mapping[str, Any], value: Any, *, each: bool) -> None:
        word = variable.get("Var", {}).get("value")
        if word is not None:
            path = self.path_of(value)
            self.set(word, (*path, None) if each and path is not None else path)

    def path_of(self, node: Any) -> syntax.Path | None:
        """The path in `input` or `data` that a node stands for; None for anything else."""
        if not isinstance(node, Mapping) or next(iter(node), "") not in ("Var", "RefDot", "RefBrack"):
            return None
        found = next(syntax.references(node), None)
        path = None if found is None else self.resolve(found)
        return path if path is not None and path[0] in ("input", "data") else None

    def resolve(self, reference: syntax.Reference) -> syntax.Path:
        """The whole path of a reference: `submod["ear.status"]` is `input.submods[_]["ear.status"]`."""
        return (*self._named.get(reference.root, (reference.root,)), *reference.parts)
