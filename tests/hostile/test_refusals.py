"""HOST-004..006, HOST-010, REG-001, REG-002, KBS-003 and faults of the environment, each against the whole system.

Every case: a coded error that names the cause and the fix, exit code not 0, nothing started, nothing left behind, and
where the KBS was asked, its log says what it denied.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import testbed as testbeds
from enclave_cc import errors

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]


def denials(testbed: testbeds.Testbed, since: int) -> list[dict[str, object]]:
    """The KBS's own account of what it denied after line `since` of its log."""
    found = []
    for line in testbed.kbs_log.read_text().splitlines()[since:]:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("event") == "deny":
            found.append(event)
    return found


def log_length(testbed: testbeds.Testbed) -> int:
    return len(testbed.kbs_log.read_text().splitlines())


def assert_refused(done: subprocess.CompletedProcess[str], code: str) -> None:
    assert testbeds.last_error(done) == code, done.stderr
    assert done.returncode == errors.TABLE[code].exit
    assert done.stdout == ""
    line = next(line for line in done.stderr.splitlines() if line.startswith(f"error {code}: "))
    assert len(line) > len(f"error {code}: ") + 20  # a cause and a fix, not a bare code


@pytest.fixture
def changed(testbed: testbeds.Testbed, tmp_path: Path) -> Callable[[str, str], Path]:
    """A copy of the node's configuration with one text in place of another."""

    def change(old: str, new: str) -> Path:
        text = testbed.configuration.read_text()
        assert old in text
        path = tmp_path / "changed.toml"
        path.write_text(text.replace(old, new))
        return path

    return change


@pytest.fixture
def bundles(testbed: testbeds.Testbed, tmp_path: Path) -> Path:
    """A copy of the node's bundles that a test may spoil."""
    copy = tmp_path / "bundles"
    shutil.copytree(testbeds.build_bundles(), copy, symlinks=True)
    return copy


def spoil(bundle: Path) -> None:
    """One bit of the last byte of the bundle's largest Python module changes; the program still runs."""
    victim = max((bundle / "rootfs").rglob("*.pyc"), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(data)
    victim.chmod(0o444)


# --- registry


def test_an_unsigned_image(testbed: testbeds.Testbed, sources: Path) -> None:
    reference = testbed.publish(f"{sources}:busybox", "unsigned", "--allow", "all")
    drop_signatures(testbed, "unsigned")
    assert_refused(testbed.cli("run", "--rm", reference, check=False), "signature-missing")


def test_an_image_of_an_unknown_repository(testbed: testbeds.Testbed, sources: Path) -> None:
    testbed.cli("image", "push", f"{sources}:busybox", testbed.reference("stranger"), "--insecure")
    assert_refused(testbed.cli("run", "--rm", testbed.reference("stranger"), check=False), "signature-untrusted")


def test_a_signature_by_another_key(testbed: testbeds.Testbed, sources: Path, tmp_path: Path) -> None:
    reference = testbed.publish(f"{sources}:busybox", "otherkey", "--allow", "all")
    drop_signatures(testbed, "otherkey")
    subprocess.run(["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", tmp_path / "k"], check=True)
    subprocess.run(["openssl", "pkcs8", "-topk8", "-nocrypt", "-in", tmp_path / "k", "-out", tmp_path / "key.pem"], check=True)
    testbed.cli("image", "sign", reference, "--key", str(tmp_path / "key.pem"), "--insecure")
    assert_refused(testbed.cli("run", "--rm", reference, check=False), "signature-untrusted")


def test_a_signature_of_another_image(testbed: testbeds.Testbed, sources: Path) -> None:
    """The signature tag of this image holds the (genuine) signature of another."""
    right = testbed.publish(f"{sources}:busybox", "crossed", "--allow", "all")
    other = testbed.publish(f"{sources}:configured", "crossed:other", "--allow", "all")
    tags = testbed.registry_directory / "docker/registry/v2/repositories/crossed/_manifests/tags"
    mine, theirs = (tags / f"sha256-{digest_of(testbed, r)}.sig/current/link" for r in (right, other))
    mine.write_bytes(theirs.read_bytes())
    assert_refused(testbed.cli("run", "--rm", right, check=False), "signature-wrong")


def test_one_ciphertext_byte_changed_in_the_registry(testbed: testbeds.Testbed, sources: Path) -> None:
    reference = testbed.publish(f"{sources}:busybox", "flipped", "--allow", "all")
    layer = json.loads(testbed.cli("image", "inspect", reference, "--insecure", "--json").stdout)["layers"][-1]["digest"]
    blob = blob_of(testbed, layer)
    whole = blob.read_bytes()
    blob.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    try:
        assert_refused(testbed.cli("run", "--rm", reference, check=False), "digest-mismatch")
    finally:
        blob.write_bytes(whole)


def test_an_image_that_is_not_there(testbed: testbeds.Testbed, busybox: str) -> None:
    assert_refused(testbed.cli("run", "--rm", f"{busybox}:nosuchtag", check=False), "image-not-found")


def test_the_registry_is_down(testbed: testbeds.Testbed, changed: Callable[[str, str], Path]) -> None:
    port = testbeds.free_port()
    configuration = changed(f'insecure = ["{testbed.registry_host}"]', f'insecure = ["127.0.0.1:{port}"]')
    done = testbed.cli("run", "--config", str(configuration), "--rm", f"127.0.0.1:{port}/busybox", check=False)
    assert_refused(done, "registry-unreachable")


# --- enclaves


def test_an_agent_bundle_with_one_byte_changed(
    testbed: testbeds.Testbed, busybox: str, bundles: Path, changed: Callable[[str, str], Path]
) -> None:
    spoil(bundles / "agent")
    since = log_length(testbed)
    configuration = changed(str(testbeds.build_bundles()), str(bundles))
    assert_refused(testbed.cli("run", "--config", str(configuration), "--rm", busybox, check=False), "measurement-unknown")
    assert [d["code"] for d in denials(testbed, since)] == ["measurement-unknown"]


def test_an_app_bundle_with_one_byte_changed(
    testbed: testbeds.Testbed, busybox: str, bundles: Path, changed: Callable[[str, str], Path]
) -> None:
    spoil(bundles / "app")
    configuration = changed(str(testbeds.build_bundles()), str(bundles))
    assert_refused(testbed.cli("run", "--config", str(configuration), "--rm", busybox, check=False), "identity-refused")


def test_a_debug_enclave(testbed: testbeds.Testbed, busybox: str, tmp_path: Path, changed: Callable[[str, str], Path]) -> None:
    key = testbeds.ROOT / "build/bundle-signing.pem"
    for words in (["app"], ["agent", "--app", str(tmp_path / "debug/app"), "--debug"]):
        testbed.cli("bundle", "build", *words, "--out", str(tmp_path / "debug" / words[0]), "--key", str(key))
    since = log_length(testbed)
    configuration = changed(str(testbeds.build_bundles()), str(tmp_path / "debug"))
    assert_refused(testbed.cli("run", "--config", str(configuration), "--rm", busybox, check=False), "debug-enclave")
    assert [d["code"] for d in denials(testbed, since)] == ["debug-enclave"]


def test_a_simulated_root_that_the_kbs_does_not_name(
    testbed: testbeds.Testbed, busybox: str, short_path: Path, changed: Callable[[str, str], Path]
) -> None:
    testbed.cli("simulator", "init", "--state", str(short_path / "simulator"))
    since = log_length(testbed)
    configuration = changed(f'state = "{testbed.state}"', f'state = "{short_path}"')
    try:
        assert_refused(testbed.cli("run", "--config", str(configuration), "--rm", busybox, check=False), "untrusted-root")
        assert [d["code"] for d in denials(testbed, since)] == ["untrusted-root"]
    finally:
        shutil.rmtree(short_path / "cache", ignore_errors=True)


def test_simulation_is_not_the_default(testbed: testbeds.Testbed, busybox: str, changed: Callable[[str, str], Path]) -> None:
    configuration = changed('tee = "simulated"', "")
    assert_refused(testbed.cli("run", "--config", str(configuration), "--rm", busybox, check=False), "tee-refused")


# --- KBS


def test_a_kbs_with_another_tls_identity(
    testbed: testbeds.Testbed, busybox: str, tmp_path: Path, changed: Callable[[str, str], Path]
) -> None:
    testbed.cli("kbs", "init", "--dir", str(tmp_path / "kbs"), "--listen", "127.0.0.1:1")
    configuration = changed(str(testbed.kbs_directory / "kbs.crt"), str(tmp_path / "kbs/kbs.crt"))
    assert_refused(testbed.cli("run", "--config", str(configuration), "--rm", busybox, check=False), "kbs-identity")


def test_the_kbs_is_down(testbed: testbeds.Testbed, busybox: str, changed: Callable[[str, str], Path]) -> None:
    configuration = changed(testbed.kbs_url, f"https://127.0.0.1:{testbeds.free_port()}")
    assert_refused(testbed.cli("run", "--config", str(configuration), "--rm", busybox, check=False), "kbs-unreachable")


def test_the_key_is_missing(testbed: testbeds.Testbed, sources: Path) -> None:
    reference = testbed.publish(f"{sources}:busybox", "keyless", "--allow", "all", "--key", "kbs:///default/image-key/keyless")
    testbed.cli("resource", "rm", "default/image-key/keyless")
    assert_refused(testbed.cli("run", "--rm", reference, check=False), "key-missing")


def test_the_release_policy_says_no(testbed: testbeds.Testbed, busybox: str, tmp_path: Path) -> None:
    before = testbed.cli("policy", "get", "release").stdout
    (tmp_path / "deny.rego").write_text("package policy\n\nimport rego.v1\n\ndefault allow := false\n")
    (tmp_path / "before.rego").write_text(before)
    since = log_length(testbed)
    testbed.cli("policy", "set", "release", str(tmp_path / "deny.rego"))
    try:
        assert_refused(testbed.cli("run", "--rm", busybox, check=False), "kbs-denied")
        assert {d["code"] for d in denials(testbed, since)} == {"kbs-denied"}
    finally:
        testbed.cli("policy", "set", "release", str(tmp_path / "before.rego"))


# --- the machine


def test_a_full_disk(testbed: testbeds.Testbed, busybox: str, short_path: Path, changed: Callable[[str, str], Path]) -> None:
    state = short_path / "state"
    state.mkdir()
    shutil.copytree(testbed.state / "simulator", state / "simulator")
    (state / "cache").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(state / "cache")], check=True)
    try:
        configuration = changed(f'state = "{testbed.state}"', f'state = "{state}"')
        assert_refused(testbed.cli("run", "--config", str(configuration), "--rm", busybox, check=False), "disk-full")
        assert [p for p in (state / "cache").rglob("*") if p.is_file() and p.stat().st_size > 4096] == []
    finally:
        subprocess.run(["umount", str(state / "cache")], check=True)


# --- reaching into the registry's storage


def blob_of(testbed: testbeds.Testbed, digest: str) -> Path:
    name = digest.removeprefix("sha256:")
    return testbed.registry_directory / f"docker/registry/v2/blobs/sha256/{name[:2]}/{name}/data"


def digest_of(testbed: testbeds.Testbed, reference: str) -> str:
    shown = json.loads(testbed.cli("image", "inspect", reference, "--insecure", "--json").stdout)
    return str(shown["digest"]).removeprefix("sha256:")


def drop_signatures(testbed: testbeds.Testbed, repository: str) -> None:
    tags = testbed.registry_directory / f"docker/registry/v2/repositories/{repository}/_manifests/tags"
    signatures = list(tags.glob("*.sig"))
    assert signatures
    for tag in signatures:
        shutil.rmtree(tag)


def test_a_run_directory_that_fills_while_the_workload_runs(
    testbed: testbeds.Testbed, busybox: str, short_path: Path, changed: Callable[[str, str], Path]
) -> None:
    """What it printed and its exit code arrive, and the pod is gone; only its log and record suffer."""
    small = short_path / "run"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], check=True)
    try:
        configuration = changed(str(testbed.run_directory), str(small))
        script = "i=0; while [ $i -lt 8000 ]; do echo line $i of a log that is larger than its disk; i=$((i+1)); done; exit 9"
        done = testbed.cli("run", "--config", str(configuration), "-q", busybox, "sh", "-c", script, check=False)
        assert (done.returncode, len(done.stdout.splitlines())) == (9, 8000), done.stderr
        assert not list((small / "pods").iterdir())
        testbed.cli("rm", "-a", "--config", str(configuration))
    finally:
        subprocess.run(["umount", str(small)], check=True)
