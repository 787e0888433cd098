"""The owner's image commands against a real registry and a real KBS, as they are typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.integration import registry as servers

from enclave_cc import errors

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def kbs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a running KBS."""
    directory = tmp_path_factory.mktemp("kbs") / "k"
    tool = [sys.executable, "-m", "enclave_cc"]
    address = f"127.0.0.1:{servers.free_port()}"
    subprocess.run([*tool, "kbs", "init", "--dir", str(directory), "--listen", address], check=True, capture_output=True)
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([*tool, "kbs", "serve", "--dir", str(directory)], stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline().startswith(b"kbs ready"), (directory / "log").read_text()
        yield directory
        process.terminate()
        process.wait(10)


@pytest.fixture
def command(kbs: Path, tmp_path: Path) -> Command:
    """`enclave-cc image WORDS --insecure`; with `code`, it must fail with that code."""

    def run(*words: object, code: str | None = None, secure: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "enclave_cc", "image", *map(str, words), *([] if secure else ["--insecure"])],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**os.environ, "ENCLAVE_CC_KBS": str(kbs), "HOME": str(tmp_path), **environment},
        )
        if code is None:
            assert done.returncode == 0, done.stderr
        else:
            assert done.returncode == errors.TABLE[code].exit, done.stderr
            assert f"error {code}: " in done.stderr
            assert done.stdout == ""
        return done

    return run


def resource(kbs: Path, path: str) -> bytes:
    tool = [sys.executable, "-m", "enclave_cc", "resource", "get", path, "--kbs", str(kbs)]
    return subprocess.run(tool, check=True, capture_output=True).stdout


def list_resources(kbs: Path) -> str:
    tool = [sys.executable, "-m", "enclave_cc", "resource", "ls", "--kbs", str(kbs)]
    return subprocess.run(tool, check=True, capture_output=True, text=True).stdout


def test_publish_then_inspect(command: Command, kbs: Path, server: servers.RegistryServer, layout: str) -> None:
    reference = f"{server.host}/published:1"
    done = command("publish", layout, reference, "--allow", "env,exec", "--json")
    published = json.loads(done.stdout)
    assert done.stderr == ""
    shown = json.loads(command("inspect", reference, "--json").stdout)
    assert shown["digest"] == published["digest"]
    assert [layer["digest"] for layer in shown["layers"]] == [layer["digest"] for layer in published["layers"]]
    assert all(layer["encrypted"] and layer["keys"] == [published["key"]] for layer in shown["layers"])
    assert [signature["key_id"] for signature in shown["signatures"]] == [published["signer"]]
    assert len(resource(kbs, published["key"].removeprefix("kbs:///"))) == 32
    launch = json.loads(resource(kbs, "default/launch-policy/default"))
    assert launch["images"][f"{server.host}/published"] == {"allow": ["env", "exec"]}
    assert (kbs / "signing.key").stat().st_mode & 0o777 == 0o600
    assert b"BEGIN PUBLIC KEY" in (kbs / "signing.pub").read_bytes()
    text = command("inspect", reference).stdout
    assert published["digest"] in text
    assert published["key"] in text


def test_publishers_at_the_same_time_do_not_lose_each_other(
    command: Command, kbs: Path, server: servers.RegistryServer, layout: str
) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: command("publish", layout, f"{server.host}/many{number}"), range(4)))
    scopes = json.loads(resource(kbs, "default/security-policy/default"))["transports"]["docker"]
    assert {f"{server.host}/many{number}" for number in range(4)} <= scopes.keys()


def test_a_key_of_ones_own_choice_is_used_again(command: Command, kbs: Path, server: servers.RegistryServer, layout: str) -> None:
    uri = "kbs:///default/image-key/chosen"
    for tag in ("1", "2"):
        assert json.loads(command("publish", layout, f"{server.host}/chosen:{tag}", "--key", uri, "--json").stdout)["key"] == uri
    command("publish", layout, f"{server.host}/chosen", "--key", "kbs:///no", code="usage")


def test_another_signer_must_be_meant(command: Command, server: servers.RegistryServer, layout: str, tmp_path: Path) -> None:
    reference = f"{server.host}/resigned"
    command("publish", layout, reference)
    command("sign", reference, "--key", tmp_path / "other.key", "--generate")
    command("sign", reference, "--key", tmp_path / "other.key", "--generate", code="already-exists")
    before = json.loads(command("inspect", reference, "--json").stdout)["digest"]
    command("publish", layout, reference, "--sign-key", tmp_path / "other.key", code="already-exists")
    assert json.loads(command("inspect", reference, "--json").stdout)["digest"] == before
    command("publish", layout, reference, "--sign-key", tmp_path / "other.key", "--replace-signer")
    assert json.loads(command("inspect", reference, "--json").stdout)["digest"] != before


def test_a_publishing_that_is_refused_leaves_no_key(
    command: Command, kbs: Path, server: servers.RegistryServer, layout: str, tmp_path: Path
) -> None:
    command("publish", layout, f"{server.host}/refused")
    command("sign", f"{server.host}/refused", "--key", tmp_path / "other.key", "--generate")
    before = list_resources(kbs)
    command("publish", layout, f"{server.host}/refused", "--sign-key", tmp_path / "other.key", code="already-exists")
    command("publish", layout, f"{server.host}/refused", "--layers", "99", code="usage")
    command("publish", layout, f"{server.host}/refused", "--platform", "linux/arm64", code="unsupported-image")
    command("publish", layout, f"127.0.0.1:{servers.free_port()}/refused", code="registry-unreachable")
    assert list_resources(kbs) == before


def test_encrypt_into_a_layout_then_push_and_sign(
    command: Command, server: servers.RegistryServer, layout: str, tmp_path: Path
) -> None:
    (tmp_path / "kek").write_bytes(os.urandom(32))
    uri, out = "kbs:///default/image-key/steps", f"oci:{tmp_path / 'out'}:enc"
    words = ("--key-uri", uri, "--key-file", tmp_path / "kek", "--layers", "0,-1")
    plain = json.loads(command("inspect", layout, "--json").stdout)
    command("encrypt", layout, f"oci:{tmp_path / 'out'}:bare", *words, "--no-marker", secure=True)
    bare = json.loads(command("inspect", f"oci:{tmp_path / 'out'}:bare", "--json").stdout)
    assert [layer["encrypted"] for layer in bare["layers"]] == [True] + [False] * (len(plain["layers"]) - 2) + [True]
    assert [layer["diff_id"] for layer in bare["layers"]] == [layer["diff_id"] for layer in plain["layers"]]
    command("encrypt", layout, out, *words, secure=True)
    shown = json.loads(command("inspect", out, "--json").stdout)  # the marker, which is not counted, and always encrypted
    assert [layer["encrypted"] for layer in shown["layers"]] == [True, *(layer["encrypted"] for layer in bare["layers"])]
    command("push", out, f"{server.host}/steps:t")
    command("sign", f"{server.host}/steps:t", "--key", tmp_path / "key", "--generate")
    pushed = json.loads(command("inspect", f"{server.host}/steps:t", "--json").stdout)
    assert pushed["digest"] == shown["manifest_digest"]
    assert len(pushed["signatures"]) == 1
    command("sign", f"{server.host}/steps:t", "--key", tmp_path / "key")
    assert len(json.loads(command("inspect", f"{server.host}/steps:t", "--json").stdout)["signatures"]) == 1
    command("encrypt", out, f"oci:{tmp_path / 'twice'}", "--key-uri", uri, "--key-file", tmp_path / "kek", code="not-encrypted")
    command("encrypt", layout, f"{server.host}/direct", "--key-uri", "auto")
    assert json.loads(command("inspect", f"{server.host}/direct", "--json").stdout)["layers"][0]["encrypted"]


def test_what_cannot_be_done_is_said(
    command: Command, kbs: Path, server: servers.RegistryServer, layout: str, tmp_path: Path
) -> None:
    gone = f"127.0.0.1:{servers.free_port()}/x"
    command("publish", layout, "UPPER CASE", code="bad-reference")
    command("publish", layout, f"{server.host}/x@sha256:{'ab' * 32}", code="bad-reference")
    command("publish", "/no/such/layout", f"{server.host}/x", code="not-found")
    command("publish", layout, gone, code="registry-unreachable")
    command("publish", layout, f"{server.host}/x", "--allow", "everything", code="usage")
    command("publish", layout, f"{server.host}/x", "--layers", "9", code="usage")
    command("publish", layout, f"{server.host}/x", "--platform", "linux/s390x", "--kbs", tmp_path / "none", code="not-found")
    command("publish", layout, f"{server.host}/x", "--sign-key", "/no/key", code="not-found")
    command("publish", layout, f"{server.host}/x", secure=True, code="registry-unreachable")
    command("inspect", f"{server.host}/no/such:image", code="image-not-found")
    command("sign", f"{server.host}/no/such:image", "--key", tmp_path / "key", "--generate", code="image-not-found")
    assert not (tmp_path / "key").exists()
    command("encrypt", layout, f"oci:{tmp_path / 'o'}", "--key-file", layout.partition(":")[0] + "/oci-layout", code="usage")


def test_a_registry_that_wants_a_password(command: Command, layout: str, tmp_path: Path) -> None:
    with servers.serve(tmp_path / "r", auth="basic", tls=True) as server:
        assert server.ca_pem is not None
        (tmp_path / "ca.pem").write_text(server.ca_pem)
        command("publish", layout, f"{server.host}/x", secure=True, code="registry-unreachable")
        command("publish", layout, f"{server.host}/x", "--ca", tmp_path / "ca.pem", secure=True, code="registry-denied")
        login = ["skopeo", "login", "--tls-verify=false", "--authfile", tmp_path / "auth.json", "-u", servers.USERNAME]
        subprocess.run([*login, "-p", servers.PASSWORD, server.host], check=True, capture_output=True)
        command(
            "publish", layout, f"{server.host}/x", "--ca", tmp_path / "ca.pem", "--auth-file", tmp_path / "auth.json", secure=True
        )
        command(
            "inspect", f"{server.host}/x", "--ca", tmp_path / "ca.pem", secure=True, REGISTRY_AUTH_FILE=str(tmp_path / "auth.json")
        )
