from __future__ import annotations

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.wire.rcar.uri import ResourcePath, ResourceUri


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("kbs:///default/key/1", "resource/default/key/1"),
        ("kbs://kbs.example:8080/a/b/c", "resource/a/b/c"),
        ("kbs+resource:///a/b/c", "resource/a/b/c"),
        ("kbs+nebula-ca:///credential?ip=1.2.3.4&name=x", "nebula-ca/credential?ip=1.2.3.4&name=x"),
        ("kbs:///a_-.x/b/c?q=1", "resource/a_-.x/b/c?q=1"),
    ],
)
def test_uris(text: str, path: str) -> None:
    uri = ResourceUri.parse(text)
    assert uri.request_path == path
    assert ResourceUri.parse(str(uri)) == uri


@pytest.mark.parametrize(
    "text",
    [
        "",
        "kbs://",
        "kbs:///",
        "kbs:///a/b",
        "kbs:///a/b/c/d",
        "kbs:///a//c",
        "kbs:///../b/c",
        "kbs:///a/..b/c",
        "kbs:///a/b/%2e",
        "kbs:///a/b/c#x",
        "kbs:///a/b/c?x\ny",
        "kbs:///a/b/c\n",
        "http:///a/b/c",
        "kbs+:///a/b/c",
        "kbs:///a/b/ü",
        "kbs:///a/b/" + "c" * 300,
    ],
)
def test_not_uris(text: str) -> None:
    with pytest.raises(PeerError) as refused:
        ResourceUri.parse(text)
    assert refused.value.code == "malformed"


def test_paths() -> None:
    path = ResourcePath.parse("default/image-key/1.0")
    assert (str(path), path.uri) == ("default/image-key/1.0", "kbs:///default/image-key/1.0")
    for text in ("a/b", "a/b/c/d", "/a/b", "a/b/", "./b/c", "a/b/c ", "a/b/c\n", "a/b'/c", "a\0/b/c"):
        with pytest.raises(PeerError):
            ResourcePath.parse(text)
