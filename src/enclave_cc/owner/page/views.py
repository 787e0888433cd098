"""What the page shows: one entry per view, and how its values come from the admin API."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from enclave_cc.errors import PeerError
from enclave_cc.owner.page import differences
from enclave_cc.owner.page.api import AdminApi
from enclave_cc.record import record

Values = dict[str, Any]
NEWEST = 50
_REPLAYED = 10_000  # recordings, the newest; the command line judges them all
_REPLAY_PAGE = 500


@record
class Action:
    """A form's target. `carry_out` returns where to go on, or values for `template`."""

    name: str
    carry_out: Callable[[AdminApi, Mapping[str, str]], str | Values]
    template: str = ""


@record
class View:
    """`shows`: the admin path that a role must cover. `collect_rows`: of a live view, what its refreshes need. Views without
    a `title` are reached from others."""

    name: str
    title: str
    shows: str
    template: str
    collect: Callable[[AdminApi, Mapping[str, str]], Values]
    actions: tuple[Action, ...] = ()
    collect_rows: Callable[[AdminApi, Mapping[str, str]], Values] | None = None


def _newest(api: AdminApi, _: Mapping[str, str]) -> Values:
    return {"decisions": api.get("admin/decisions", limit=str(NEWEST))["items"]}


def _overview(api: AdminApi, query: Mapping[str, str]) -> Values:
    policies = api.find("admin/policies")
    references = api.find("admin/reference-values")
    return {
        **_newest(api, query),
        "audit": api.find("admin/audit"),
        "roots": (api.find("admin/roots") or {"items": []})["items"],
        "policies": None if policies is None else sum(1 for each in policies["items"] if each["version"] is not None),
        "references": None if references is None else len(references["items"]),
    }


def _decisions(api: AdminApi, query: Mapping[str, str]) -> Values:
    outcome = query.get("outcome", "")
    chosen = {"outcome": outcome} if outcome else {}
    return {"decisions": api.get("admin/decisions", limit="500", **chosen)["items"], "outcome": outcome}


def _decision(api: AdminApi, query: Mapping[str, str]) -> Values:
    return {"decision": api.get(f"admin/decisions/{_segment(query, 'id')}")}


def _resources(api: AdminApi, query: Mapping[str, str]) -> Values:
    asked = {name: query[name] for name in ("prefix", "after") if query.get(name)}
    page = api.get("admin/resources", **asked)
    return {"resources": page["items"], "next": page.get("next"), "prefix": query.get("prefix", "")}


def _policies(api: AdminApi, _: Mapping[str, str]) -> Values:
    return {"policies": api.get("admin/policies")["items"]}


def _policy(api: AdminApi, query: Mapping[str, str]) -> Values:
    """One version of a policy beside another: by default the newest one and the active one."""
    path = f"admin/policies/{_path(query, 'id')}"
    history = api.get(path, history="")["items"]
    active = next((each["version"] for each in history if each["active"]), None)
    shown = _number(query, "version") if query.get("version") else history[0]["version"]
    against = _number(query, "against") if query.get("against") else active
    text = api.get(path, version=str(shown))["text"]
    base = text if against in (None, shown) else api.get(path, version=str(against))["text"]
    same = against in (None, shown)
    lines = differences.compare(base, text, context=None if same else differences.CONTEXT)
    return {
        "id": query["id"],
        "history": history,
        "active": active,
        "shown": shown,
        "against": None if same else against,
        "lines": lines,
        "may_activate": api.covers("admin/policy-activations", "POST"),
        "may_replay": api.covers("admin/replay", "POST"),
    }


def _activate(api: AdminApi, form: Mapping[str, str]) -> str:
    policy_id, version = _path(form, "id"), _number(form, "version")
    api.post("admin/policy-activations", {"activate": {policy_id: version}})
    return f"policy?id={policy_id}"


def _replay(api: AdminApi, form: Mapping[str, str]) -> Values:
    """What would have been decided by this version, at once or at a later time."""
    policy_id, version = _path(form, "id"), _number(form, "version")
    request: Values = {"policies": {policy_id: api.get(f"admin/policies/{policy_id}", version=str(version))["text"]}}
    if form.get("days"):
        request["at"] = int(time.time()) + _number(form, "days") * 24 * 3600
    changes: list[Values] = []
    judged = skipped = 0
    after: int | None = 0
    while after is not None and judged + skipped < _REPLAYED:
        page = api.post("admin/replay", request | {"after": after, "limit": _REPLAY_PAGE})
        changes += page["changes"]
        judged, skipped, after = judged + page["judged"], skipped + page["skipped"], page["next"]
    changes.sort(key=lambda change: -change["count"])
    return {
        "id": policy_id,
        "version": version,
        "days": form.get("days", ""),
        "changes": changes,
        "judged": judged,
        "skipped": skipped,
        "complete": after is None,
    }


def _references(api: AdminApi, _: Mapping[str, str]) -> Values:
    found = api.get("admin/reference-values")["items"]
    now = time.time()
    for each in found:
        expired = each["expires"] is not None and each["expires"] <= now
        each["state"] = "retired" if each["retired"] else "expired" if expired else "active"
    return {"references": found}


def _audit(api: AdminApi, _: Mapping[str, str]) -> Values:
    found = api.get("admin/audit")
    begin = max(0, found["size"] - NEWEST)
    lines = api.find("admin/audit/log", size=str(found["size"]), begin=str(begin)) or []
    entries = [line["entry"] for line in lines if "entry" in line]
    return {"audit": found, "entries": entries[::-1]}


VIEWS: tuple[View, ...] = (
    View("overview", "Overview", "admin/decisions", "overview", _overview, collect_rows=_newest),
    View("decisions", "Decisions", "admin/decisions", "decisions", _decisions, collect_rows=_decisions),
    View("decision", "", "admin/decisions", "decision", _decision),
    View("resources", "Resources", "admin/resources", "resources", _resources),
    View("policies", "Policies", "admin/policies", "policies", _policies),
    View(
        "policy",
        "",
        "admin/policies",
        "policy",
        _policy,
        actions=(Action("activate", _activate), Action("replay", _replay, "replay")),
    ),
    View("references", "Reference values", "admin/reference-values", "references", _references),
    View("audit", "Audit log", "admin/audit", "audit", _audit),
)


def _segment(values: Mapping[str, str], name: str) -> str:
    """Raises `PeerError("malformed")` unless the value can be one segment of a path."""
    value = values.get(name, "")
    if not value or not value.isascii() or not value.isalnum() or len(value) > 64:
        raise PeerError("malformed", f"{name} cannot be read")
    return value


def _path(values: Mapping[str, str], name: str) -> str:
    value = values.get(name, "")
    if not value or not value.isascii() or not value.isprintable() or len(value) > 1024 or any(c in value for c in " ?#%&"):
        raise PeerError("malformed", f"{name} cannot be read")
    return value


def _number(values: Mapping[str, str], name: str) -> int:
    value = values.get(name, "")
    if not value.isascii() or not value.isdecimal() or len(value) > 9:
        raise PeerError("malformed", f"{name} is not a number")
    return int(value)
