"""distribution/reference's grammar and docker's normalisation."""

from __future__ import annotations

import pytest

from enclave_cc.errors import PeerError, UsageError
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.reference import Reference

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("busybox", "docker.io", "library/busybox", None, None),
        ("busybox:1.36", "docker.io", "library/busybox", "1.36", None),
        ("user/app", "docker.io", "user/app", None, None),
        ("index.docker.io/library/busybox", "docker.io", "library/busybox", None, None),
        ("localhost/app", "localhost", "app", None, None),
        ("localhost:5000/a/b:t", "localhost:5000", "a/b", "t", None),
        ("registry.example.com/a/b_c/d__e/f-g.h", "registry.example.com", "a/b_c/d__e/f-g.h", None, None),
        (f"host:5000/app@{DIGEST}", "host:5000", "app", None, DIGEST),
        (f"host:5000/app:t@{DIGEST}", "host:5000", "app", "t", DIGEST),
        ("[::1]:5000/app:T_1.x-y", "[::1]:5000", "app", "T_1.x-y", None),
        ("Host/app", "Host", "app", None, None),
    ],
)
def test_reads_what_docker_reads(text: str, registry: str, repository: str, tag: str | None, digest: str | None) -> None:
    found = Reference.parse(text)
    assert (found.registry, found.repository, found.tag, found.digest) == (registry, repository, tag, digest)
    assert Reference.parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "UPPER",
        "host/Upper",
        "a//b",
        "/a",
        "a/",
        "host:99999999/a",
        "host:70000/a",
        "a:",
        "a:b:c",
        "a@sha256:12",
        f"a@{DIGEST}@{DIGEST}",
        "a:" + "t" * 129,
        "host/" + "a" * 256,
        "a b",
        "a\n",
        "host/a..b",
        "-host/a.b/x",
        "ho st/a",
        "x" * 2000,
        f"a@SHA256:{'ab' * 32}",
    ],
)
def test_refuses_everything_else(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Reference.parse(text)
    assert caught.value.code == "bad-reference"
    with pytest.raises(PeerError) as hostile:
        Reference.parse_hostile(text)
    assert hostile.value.code == "malformed"


def test_the_digest_decides_over_the_tag() -> None:
    assert Reference.parse(f"host:1/a:t@{DIGEST}").target == DIGEST
    assert Reference.parse("host:1/a:t").target == "t"
    assert Reference.parse("host:1/a").target == "latest"
    assert str(Reference.parse("host:1/a").with_default_tag()) == "host:1/a:latest"
    assert str(Reference.parse("host:1/a").with_digest(Digest.parse(DIGEST)).with_default_tag()) == f"host:1/a@{DIGEST}"
