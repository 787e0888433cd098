"""The OpenAPI document: it and the routes say the same, and a real KBS answers as it says."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.owner.kbs import openapi
from enclave_cc.owner.kbs.assembly import assemble
from enclave_cc.owner.kbs.config import KbsConfig
from enclave_cc.owner.kbs.directory import create
from enclave_cc.owner.kbs.routing import ADMIN, Route
from enclave_cc.transport.https import HttpsClient

from .conftest import make_admin_token

DOCUMENT: dict[str, Any] = json.loads(openapi.read())
SOURCES = Path(openapi.__file__).parent
METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Route, ...]:
    directory = create(tmp_path_factory.mktemp("openapi") / "kbs", listen="127.0.0.1:0", hostnames=())
    with assemble(directory, KbsConfig.load(directory)) as server:
        return server.routes.table.routes


def operations() -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """(method, route, operation, path item)"""
    for path, item in DOCUMENT["paths"].items():
        for method in METHODS:
            if method in item:
                yield method.upper(), item.get("x-route", path), item[method], item


def resolve(value: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in value:
        found: Any = DOCUMENT
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        value = found
    return value


def test_the_document_has_every_route_and_no_other(routes: tuple[Route, ...]) -> None:
    described = {(method, path) for method, path, _, _ in operations()}
    # The page is for browsers, no interface.
    served = {(route.method, route.path) for route in routes if not route.path.startswith("/page")}
    assert served - described == set(), "routes that src/enclave_cc/owner/kbs/openapi.json lacks"
    assert described - served == set(), "operations of openapi.json that no route serves"


def test_who_may_ask(routes: tuple[Route, ...]) -> None:
    access = {(route.method, route.path): route.access for route in routes}
    for method, path, operation, _ in operations():
        admin = {"admin": []} in operation["security"]
        assert admin == (access[method, path] == ADMIN), (method, path)
        assert not admin or {"401", "403"} <= set(operation["responses"])


def test_path_parameters(routes: tuple[Route, ...]) -> None:
    for _, path, operation, item in operations():
        named = {
            resolve(parameter)["name"]
            for parameter in [*item.get("parameters", []), *operation.get("parameters", [])]
            if resolve(parameter)["in"] == "path"
        }
        assert named == {name.removesuffix("*") for name in re.findall(r"\{([^}]+)\}", path)}, path


def test_query_parameters() -> None:
    """By name, over all paths: what handlers read of queries is what the document names."""
    read: set[str] = set()
    for source in SOURCES.glob("*_paths.py"):
        text = source.read_text()
        read.update(re.findall(r'query(?:\.get\(|\[)"(\w+)"', text))
        read.update(re.findall(r'"(\w+)" in (?:call\.request\.)?query', text))
        read.update(re.findall(r'take_number\((?:call\.request\.)?query, "(\w+)"', text))
        read.update(re.findall(r'_take(?:_size)?\(call, "(\w+)"', text))
        if "_take_size(call)" in text:
            read.add("size")
    described = {
        resolve(parameter)["name"]
        for _, _, operation, _ in operations()
        for parameter in operation.get("parameters", [])
        if resolve(parameter)["in"] == "query"
    }
    assert described == read


def test_every_reference_leads_somewhere() -> None:
    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                assert resolve(value)
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(DOCUMENT)
    assert DOCUMENT["openapi"] == "3.1.0"


def test_it_is_served(kbs: Any) -> None:
    http = HttpsClient(kbs.url, certificate_pem=kbs.certificate, deadline=10, keep_alive=False)
    answer = http.request("GET", "/openapi.json")
    assert (answer.status, answer.header("content-type"), answer.body) == (200, "application/json", openapi.read())


# --- schemathesis: requests that fit the document, and some that do not, against a real KBS

EXAMPLES = int(os.environ.get("ENCLAVE_CC_SCHEMATHESIS_EXAMPLES", "4"))


@pytest.fixture(scope="module")
def open_kbs(tmp_path_factory: pytest.TempPathFactory, machine: Any, new_kbs: Any) -> Iterator[Any]:
    """A KBS of its own, since what is drawn may activate policies; it refuses as often as it is asked to."""
    made = new_kbs(tmp_path_factory.mktemp("schemathesis"), machine)
    made.stop()
    settings = made.directory / "kbs.toml"
    settings.write_text(re.sub(r"(_rate) = \d+", r"\1 = 0", settings.read_text()))
    made.start()
    yield made
    assert made.stop() == 0
    assert made.events("bug") == []


def test_answers_are_as_the_document_says(open_kbs: Any, tmp_path: Path) -> None:
    import hypothesis
    import requests
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    (tmp_path / "kbs.crt").write_text(open_kbs.certificate)
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    schema.config.update(base_url=open_kbs.url, tls_verify=str(tmp_path / "kbs.crt"))
    session = requests.Session()
    session.trust_env = False
    used = (
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    )
    answered: dict[str, set[int]] = {}

    def check(operation: Any) -> None:
        strategy = operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE) | operation.as_strategy(
            generation_mode=schemathesis.GenerationMode.NEGATIVE
        )

        @hypothesis.given(case=strategy)
        @hypothesis.settings(
            max_examples=EXAMPLES,
            database=None,
            derandomize=True,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def run(case: Any) -> None:
            headers = {"Authorization": f"Bearer {make_admin_token(open_kbs)}"}
            response = case.call(session=session, headers=headers)
            answered.setdefault(operation.label, set()).add(response.status_code)
            case.validate_response(response, checks=list(used))

        run()

    for result in schema.get_all_operations():
        check(result.ok())
    session.close()
    assert len(answered) == len(list(operations()))
    assert sum(200 in statuses for statuses in answered.values()) >= len(answered) // 2
