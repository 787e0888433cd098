"""The owner's side of the admin API."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from enclave_cc.crypto.jws import SigningKey
from enclave_cc.errors import TABLE, EnvironmentFault, PeerError, UsageError
from enclave_cc.owner.kbs import admin
from enclave_cc.owner.kbs.directory import KbsDirectory
from enclave_cc.owner.reference.values import ReferenceValue
from enclave_cc.owner.resources.store import MAX_PAGE
from enclave_cc.transport.https import HttpsClient, Response
from enclave_cc.wire.rcar import canonical, messages
from enclave_cc.wire.rcar.uri import ResourcePath

DEADLINE = 30.0


class AdminClient:
    """Administers one KBS over pinned HTTPS, with tokens signed by the owner's key. Safe for many threads.

    Every method raises `EnvironmentFault("kbs-unreachable" | "deadline")`, `PeerError("kbs-identity")`, and what the
    KBS answers: `PeerError("unauthenticated" | "forbidden" | "malformed" | "too-large")`,
    `UsageError("not-found" | "policy-invalid" | "usage")`.
    """

    def __init__(self, url: str, *, certificate_pem: str, key: SigningKey, role: str = "admin", deadline: float = DEADLINE) -> None:
        self.url = url
        self._http = HttpsClient(url, certificate_pem=certificate_pem, deadline=deadline, keep_alive=False)
        self._key = key
        self._role = role

    @classmethod
    def from_directory(cls, directory: str | Path | None = None, *, deadline: float = DEADLINE) -> AdminClient:
        """From a KBS directory, or the owner's part of one; without `directory`, see `KbsDirectory.locate`.

        Raises `UsageError`: "not-found" or "bad-config"."""
        kbs = KbsDirectory.locate(directory)
        settings = kbs.read_toml(kbs.owner_configuration)
        url = settings.get("url")
        if url is None:
            try:
                url = kbs.url_file.read_text().strip()
            except OSError as error:
                raise EnvironmentFault(
                    "kbs-unreachable", f"the KBS of {kbs.path} has not been started", "Start it with `enclave-cc kbs serve`."
                ) from error
        names = {name: settings.get(name, default) for name, default in _OWNER_DEFAULTS.items()}
        if not isinstance(url, str) or not all(isinstance(name, str) for name in names.values()):
            raise UsageError("bad-config", f"{kbs.owner_configuration} has a setting that is not text")
        return cls(
            url,
            certificate_pem=kbs.read_certificate(names["certificate"]),
            key=kbs.read_admin_key(names["admin_key"]),
            role=names["role"],
            deadline=deadline,
        )

    def make_token(self) -> str:
        """An admin token of five minutes, for other clients of the owner's."""
        return admin.issue_token(self._key, self._role, time.time())

    # resources

    def set_resource(self, path: str, value: bytes, *, tags: Mapping[str, str] | None = None) -> int:
        """Stores a new version of `repository/type/tag`; it is durable when this returns its number.

        `tags` replace those of the path."""
        query = "" if tags is None else "?" + urlencode({"tags": json.dumps(tags)})
        answer = self._request("POST", f"resource/{_check_path(path)}{query}", value)
        return _parse_version(answer)

    def get_resource(self, path: str, version: int | None = None) -> bytes:
        """The latest, or the given, value. Raises `UsageError("not-found")`."""
        return self.read_resource(path, version)[1]

    def read_resource(self, path: str, version: int | None = None) -> tuple[int, bytes]:
        """(version, value). Raises `UsageError("not-found")`."""
        query = "" if version is None else f"?version={version}"
        answer = self._request("GET", f"admin/resources/{_check_path(path)}{query}")
        return _parse_version(answer), answer.body

    def delete_resource(self, path: str) -> None:
        """Raises `UsageError("not-found")`."""
        self._request("DELETE", f"resource/{_check_path(path)}")

    def tag_resource(self, path: str, tags: Mapping[str, str | None]) -> dict[str, Any]:
        """Sets tags, or takes them off (None); how the path is listed then. Raises `UsageError("not-found" | "usage")`."""
        body = self._request("POST", f"admin/resources/{_check_path(path)}/tags", json.dumps(tags).encode()).body
        return canonical.parse_object(body, "the resource")

    def list_resources(self, prefix: str = "", *, tags: Mapping[str, str | None] | None = None) -> list[dict[str, Any]]:
        """{path, version, created, size, author, tags} of each, sorted by path."""
        found: list[dict[str, Any]] = []
        query = {"prefix": prefix, "limit": str(MAX_PAGE)} | ({"tags": json.dumps(tags)} if tags else {})
        while True:
            page = canonical.parse_object(self._request("GET", f"admin/resources?{urlencode(query)}").body, "the listing")
            found += _items_of(page)
            following = page.get("next")
            if following is None:
                return found
            if not isinstance(following, str) or following <= query.get("after", ""):
                raise PeerError("kbs-protocol", "the KBS's listing does not go on")
            query["after"] = following

    def list_versions(self, path: str) -> list[dict[str, Any]]:
        """{version, created, size, author, removed, removed_by} of each version kept, the newest first."""
        return self._list(f"admin/resources/{_check_path(path)}/history", {})

    # policies

    def set_policy(self, policy: str, text: str, *, draft: bool = False, note: str = "") -> dict[str, Any]:
        """Activates a version of "release", "attestation" or a policy id, or keeps it as a draft: {id, version, digest}.
        Raises `UsageError("policy-invalid")`, changing nothing."""
        encoded = base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()
        body = {"policy": encoded, "draft": draft, "note": note}
        return self._post_object(f"admin/policies/{_policy_path(policy)}", body)

    def get_policy(self, policy: str, version: int | None = None) -> dict[str, Any]:
        """{id, version, digest, text} of the active version, or the one named."""
        query = "" if version is None else f"?version={version}"
        return canonical.parse_object(self._request("GET", f"admin/policies/{_policy_path(policy)}{query}").body, "the policy")

    def list_policies(self) -> list[dict[str, Any]]:
        """{id, version, newest, activated, activated_by} of each."""
        return self._list("admin/policies", {})

    def list_policy_versions(self, policy: str) -> list[dict[str, Any]]:
        """{version, created, author, note, digest, active, activations}, the newest first."""
        return self._list(f"admin/policies/{_policy_path(policy)}", {"history": "1"})

    def activate_policies(self, wanted: Mapping[str, int | None]) -> dict[str, int]:
        """All at once or none; None stands for the newest version. Returns the versions."""
        body = {"activate": {policy_id(name): version for name, version in wanted.items()}}
        active: dict[str, int] = self._post_object("admin/policy-activations", body)["active"]
        return active

    def roll_back_policy(self, policy: str) -> dict[str, int]:
        active: dict[str, int] = self._post_object("admin/policy-activations", {"roll_back": policy_id(policy)})["active"]
        return active

    def deactivate_policy(self, policy: str) -> None:
        """Ends a path's own release policy."""
        self._request("DELETE", f"admin/policies/{_policy_path(policy)}")

    # reference values

    def add_reference_values(self, values: Sequence[ReferenceValue], *, replace: bool = False) -> None:
        """Adds each to its name, or replaces what the names stand for; all or none."""
        self._send_json("admin/reference-values", {"values": [value.to_json() for value in values], "replace": replace})

    def add_signed_statement(self, envelope: bytes, *, by_signer: bool = False, expires: int | None = None) -> list[ReferenceValue]:
        """Adds what a statement says that a key known to the KBS signed. Raises `PeerError("signature-untrusted")`."""
        query = ({"by_signer": "1"} if by_signer else {}) | ({} if expires is None else {"expires": str(expires)})
        path = "admin/reference-values/signed" + (f"?{urlencode(query)}" if query else "")
        items = canonical.parse_object(self._request("POST", path, envelope).body, "the answer").get("items")
        return [ReferenceValue.from_json(item) for item in items] if isinstance(items, list) else []

    def send_rvps_message(self, message: bytes) -> None:
        """Registers an RVPS message as upstream's KBS takes it: it replaces what its names stood for."""
        self._request("POST", "reference-value", message)

    def list_reference_values(self) -> list[ReferenceValue]:
        return [ReferenceValue.from_json(item) for item in self._list("admin/reference-values", {})]

    def remove_reference_value(self, name: str, value: Any = None) -> None:
        """One value, or everything, under `name`. Raises `UsageError("not-found")`."""
        query = {"name": name} | ({} if value is None else {"value": json.dumps(value)})
        self._request("DELETE", "admin/reference-values?" + urlencode(query))

    def retire_reference_value(self, name: str, value: Any = None, *, reason: str = "") -> int:
        """Returns how many. Raises `UsageError`: "not-found" or "wrong-state"."""
        return int(self._post_object("admin/reference-values/retire", {"name": name, "value": value, "reason": reason})["count"])

    def restore_reference_value(self, name: str, value: Any = None) -> int:
        """Returns how many. Raises `UsageError`: "not-found" or "wrong-state"."""
        return int(self._post_object("admin/reference-values/restore", {"name": name, "value": value})["count"])

    def list_reference_signers(self) -> list[dict[str, Any]]:
        """{name, key_id, pem, added, added_by} of each builder's key."""
        return self._list("admin/reference-signers", {})

    def add_reference_signer(self, name: str, pem: str) -> dict[str, Any]:
        """{name, key_id}. Raises `UsageError("already-exists")`."""
        return self._post_object("admin/reference-signers", {"name": name, "pem": pem})

    def remove_reference_signer(self, name: str) -> None:
        self._request("DELETE", f"admin/reference-signers/{quote(name, safe='')}")

    # replay

    def replay(self, rules: Mapping[str, Any]) -> dict[str, Any]:
        """One page of `policy replay`: {changes, judged, skipped, next}. Raises `UsageError("policy-invalid")`."""
        return self._post_object("admin/replay", rules)

    def list_recordings(self, *, after: int = 0, since: int = 0, limit: int = 200) -> list[dict[str, Any]]:
        """Recorded evidence and requests, the oldest first."""
        return self._list("admin/recordings", {"after": str(after), "since": str(since), "limit": str(limit)})

    def export_rules(self) -> dict[str, Any]:
        """What a replay elsewhere needs: {at, policies, reference_values, roots, collateral}."""
        return canonical.parse_object(self._request("GET", "admin/replay-rules").body, "the rules")

    # decisions and roots

    def explain(self, decision_id: str) -> dict[str, Any]:
        """What was decided under an id, and why. Raises `UsageError("not-found")`."""
        body = self._request("GET", f"admin/decisions/{quote(decision_id, safe='')}").body
        return canonical.parse_object(body, "the decision")

    def list_decisions(self, *, outcome: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """The newest first."""
        query = {"limit": str(limit)} | ({} if outcome is None else {"outcome": outcome})
        return self._list("admin/decisions", query)

    def fetch(self, path: str, query: Mapping[str, object] | None = None) -> bytes:
        """The body of a path below `/kbs/v0/`."""
        return self._request("GET", path + ("" if query is None else "?" + urlencode(query))).body

    def _list(self, path: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        body = self._request("GET", f"{path}?{urlencode(query)}").body
        return _items_of(canonical.parse_object(body, "the listing"))

    def _send_json(self, path: str, value: object) -> Response:
        return self._request("POST", path, json.dumps(value).encode(), content_type="application/json")

    def _post_object(self, path: str, value: object) -> dict[str, Any]:
        return canonical.parse_object(self._send_json(path, value).body, "the KBS's answer")

    def _request(self, method: str, path: str, body: bytes | None = None, *, content_type: str | None = None) -> Response:
        headers = {"Authorization": f"Bearer {self.make_token()}"}
        if content_type is not None:
            headers["Content-Type"] = content_type
        response = self._http.request(method, f"{messages.PREFIX}/{path}", body, headers)
        if response.status == 200:
            return response
        raise _error_of(response)


_OWNER_DEFAULTS = {"certificate": "kbs.crt", "admin_key": "admin.key", "role": "admin"}
_OURS = ("not-found", "policy-invalid", "usage", "already-exists", "wrong-state")


def policy_id(name: str) -> str:
    """The id of "release", "attestation" or of a policy that is named by its id."""
    return {"release": "resource-policy", "attestation": "default_cpu"}.get(name, name)


def _policy_path(name: str) -> str:
    return quote(policy_id(name), safe="/")


def _items_of(listing: Mapping[str, Any]) -> list[dict[str, Any]]:
    items = listing.get("items")
    if not isinstance(items, list):
        raise PeerError("kbs-protocol", "the KBS's listing has no items")
    return items


def _parse_version(answer: Response) -> int:
    text = answer.header("resource-version") or ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0  # 0: upstream's KBS does not say


def _check_path(path: str) -> ResourcePath:
    try:
        return ResourcePath.parse(path)
    except PeerError as error:
        raise UsageError("usage", error.what, "Write it as REPOSITORY/TYPE/TAG.") from error


def _error_of(response: Response) -> PeerError | UsageError:
    try:
        problem = messages.Problem.parse(response.body)
    except PeerError:
        return PeerError("kbs-protocol", f"the KBS answered status {response.status} without an error message")
    code = problem.code if problem.code in TABLE else None
    if code in _OURS:
        return UsageError(code, problem.detail)
    by_status = {401: "unauthenticated", 403: "forbidden", 404: "not-found", 413: "too-large"}
    return PeerError(code or by_status.get(response.status, "kbs-protocol"), problem.detail)
