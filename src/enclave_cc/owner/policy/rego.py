"""Rego policies, evaluated as Trustee does: regorus, Rego v1, the builtin `query_reference_value(name)`.

An engine belongs to the thread that made it, so each thread compiles a policy once and clones it per evaluation.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import regorus

from enclave_cc.errors import UsageError
from enclave_cc.owner.policy import syntax
from enclave_cc.record import record

MAX_TEXT = 1024 * 1024
_ENGINES_KEPT = 32  # per thread

Lookup = Callable[[str], Any]


@record
class Policy:
    """A policy that compiles. `id` and `version` say which one decided."""

    id: str
    text: str
    version: int = 0

    def __post_init__(self) -> None:
        """Raises `UsageError("policy-invalid")` with the place of the error."""
        if len(self.text) > MAX_TEXT:
            raise UsageError("policy-invalid", f"the policy is longer than {MAX_TEXT} characters")
        if "data.policy" not in _build_engine(self).get_packages():
            raise UsageError("policy-invalid", f"policy {self.id} is not of `package policy`")

    @property
    def title(self) -> str:
        """For a reader. A text that was never stored has no version."""
        return f"{self.id} version {self.version}" if self.version else f"{self.id} as given"

    @property
    def digest(self) -> str:
        """SHA-384 of the text, as upstream names a policy."""
        return self.digest_of(self.text)

    @staticmethod
    def digest_of(text: str) -> str:
        return hashlib.sha384(text.encode()).hexdigest()


@record
class Evaluation:
    """What the rules gave (None: undefined, or no such rule) and which reference values were asked for."""

    values: Mapping[str, Any]
    queried: Mapping[str, Any]


def evaluate(
    policy: Policy,
    rules: Sequence[str],
    claims: Mapping[str, Any],
    *,
    data: Mapping[str, Any] | None = None,
    lookup: Lookup | None = None,
) -> Evaluation:
    """The `rules` (full paths, `data.policy...`) of `policy` over `claims` as `input`.

    Raises `UsageError("policy-invalid")` when evaluation itself fails, such as for two values of one rule.
    """
    found = _evaluate(policy, rules, claims, data, lookup)
    if isinstance(found, str):
        raise UsageError("policy-invalid", f"policy {policy.id} does not evaluate: {found}")
    return found


def _evaluate(
    policy: Policy, rules: Sequence[str], claims: Mapping[str, Any], data: Mapping[str, Any] | None, lookup: Lookup | None
) -> Evaluation | str:
    """What the rules gave, or what is wrong.

    No error leaves here: its traceback would keep these frames' engine, which no other thread may free.
    """
    values: dict[str, Any] = {}
    try:
        with open_session(policy, claims, data=data, lookup=lookup) as session:
            for rule in rules:
                if rule.rpartition(".")[2] not in policy.text:  # not named, so not there: no need to look for it
                    values[rule] = None
                    continue
                # A query, because asking for a rule that a policy does not have would be an error.
                found = session.engine.eval_query(rule)["result"]
                values[rule] = found[0]["expressions"][0]["value"] if found else None
            return Evaluation(values, session.queried)
    except RuntimeError as error:  # for claims that are no text, such as half a surrogate pair, too
        return syntax.describe_fault(error)


@record
class Session:
    """An engine that has everything to answer queries about one input; of the thread that opened it."""

    engine: Any
    queried: dict[str, Any]


@contextmanager
def open_session(
    policy: Policy, claims: Mapping[str, Any], *, data: Mapping[str, Any] | None = None, lookup: Lookup | None = None
) -> Iterator[Session]:
    """For `evaluate`, and for `trace`, which asks more than a policy's rules."""
    state = _state()
    engine = state.engine(policy)
    if data is not None:
        engine.add_data_json(json.dumps(data))
    engine.set_input_json(json.dumps(claims))
    state.lookup, state.queried = lookup or (lambda _name: None), {}
    try:
        yield Session(engine, state.queried)
    finally:
        state.lookup, state.queried = None, {}


class _State(threading.local):
    """One thread's engines and what its present evaluation asks."""

    def __init__(self) -> None:
        self.engines: OrderedDict[str, Any] = OrderedDict()
        self.lookup: Lookup | None = None
        self.queried: dict[str, Any] = {}

    def engine(self, policy: Policy) -> Any:
        base = self.engines.get(policy.text)
        if base is None:
            base = self.engines[policy.text] = _build_engine(policy)
            if len(self.engines) > _ENGINES_KEPT:
                self.engines.popitem(last=False)
        self.engines.move_to_end(policy.text)
        return base.clone()


_THREAD_STATE = _State()


def _state() -> _State:
    return _THREAD_STATE


def _query_reference_value(name: object) -> Any:
    """The builtin: the value of a name, null for an unknown one, as upstream answers."""
    state = _state()
    if not isinstance(name, str) or state.lookup is None:
        return None
    if name not in state.queried:
        state.queried[name] = state.lookup(name)
    return state.queried[name]


def _build_engine(policy: Policy) -> Any:
    engine = regorus.Engine()
    engine.add_extension("query_reference_value", 1, _query_reference_value)
    fault = _probe(engine, policy)
    if fault:
        del engine  # as in `_evaluate`
        raise UsageError("policy-invalid", f"policy {policy.id} does not compile: {fault}")
    return engine


def _probe(engine: Any, policy: Policy) -> str:
    try:
        engine.add_policy(policy.id, policy.text)
        # Unknown functions and the like show only when the rules are prepared, which evaluation does; clones stay prepared.
        engine.set_input_json("{}")
        engine.eval_query("data.policy")
    except RuntimeError as error:
        return syntax.describe_fault(error)
    return ""
