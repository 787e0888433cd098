"""Values in a real SoftHSM: the suite, wrong PINs, a token that goes and comes back."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import softhsm
from resource_store import A, B, Reopen, ResourceStoreSuite, names, refused

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnvironmentFault
from enclave_cc.owner.resources.locks import PathLocks
from enclave_cc.owner.resources.origin import Origin
from enclave_cc.owner.resources.pkcs11_objects import TokenObjects
from enclave_cc.owner.resources.pkcs11_token import Pkcs11Token
from enclave_cc.owner.resources.store import ResourceStore
from enclave_cc.owner.resources.versioned import VersionedStore


@pytest.fixture
def label() -> str:
    name = "t" + os.urandom(6).hex()
    softhsm.make_token(name)
    return name


@pytest.fixture
def pin(tmp_path: Path) -> Path:
    (tmp_path / "pin").write_text(softhsm.PIN + "\n")
    return tmp_path / "pin"


def open_store(label: str, pin: Path) -> VersionedStore:
    token = Pkcs11Token(softhsm.MODULE, label, Origin(file=pin))
    return VersionedStore(TokenObjects(token, PathLocks(pin.parent / "locks")), None)


class TestToken(ResourceStoreSuite):
    @pytest.fixture
    def store(self, label: str, pin: Path) -> ResourceStore:
        return open_store(label, pin)

    @pytest.fixture
    def reopen(self, label: str, pin: Path) -> Reopen:
        return lambda: open_store(label, pin)


def test_a_wrong_pin_is_tried_once(label: str, pin: Path) -> None:
    """A token locks itself after a few: no request may use two of them up. The right one then still works."""
    pin.write_text("WRONG-CANARY")
    store = open_store(label, pin)
    error = refused(lambda: store.get(A))
    assert error.code == "store-denied"
    assert "CANARY" not in str(error)
    assert error.__cause__ is None
    pin.write_text(softhsm.PIN)
    assert store.put(A, Secret(b"1")) == 1


def test_no_module_no_token_no_pin(label: str, pin: Path, tmp_path: Path) -> None:
    assert refused(lambda: Pkcs11Token(tmp_path / "absent.so", label, Origin(file=pin))).code == "not-found"
    (tmp_path / "text.so").write_text("not a module")
    broken = VersionedStore(TokenObjects(Pkcs11Token(tmp_path / "text.so", label, Origin(file=pin)), PathLocks(tmp_path)), None)
    assert refused(lambda: broken.get(A)).code == "store-failed"
    assert refused(lambda: open_store("no-such-token", pin).get(A)).code == "store-unreachable"
    assert refused(lambda: open_store(label, tmp_path / "no-pin").get(A)).code == "store-denied"
    assert open_store(label, pin).put(A, Secret(b"1")) == 1


def test_a_token_that_was_gone_is_found_again(label: str, pin: Path) -> None:
    store = open_store(label, pin)
    store.put(A, Secret(b"1"), tags={"a": "b"})
    tokens = softhsm.find_directory() / "tokens"
    away = softhsm.find_directory() / "away"
    tokens.rename(away)
    tokens.mkdir()
    store._objects._token.run(lambda _: store._objects._token._module.restart())  # type: ignore[attr-defined]  # SoftHSM looks for tokens then only
    for act in (lambda: store.get(A), lambda: store.put(A, Secret(b"2")), lambda: store.list()):
        assert refused(act).code == "store-unreachable"
    shutil.rmtree(tokens)
    away.rename(tokens)
    assert store.get(A).value == Secret(b"1")
    assert store.put(A, Secret(b"2")) == 2
    assert [dict(info.tags) for info in store.list().items] == [{"a": "b"}]


def test_lost_sessions_are_opened_again(label: str, pin: Path) -> None:
    """The module was started anew by somebody else in the process."""
    import pkcs11

    store = open_store(label, pin)
    store.put(A, Secret(b"1"))
    for _ in range(3):
        pkcs11.lib(str(softhsm.MODULE)).reinitialize()
        results: list[object] = []
        threads = [threading.Thread(target=lambda r=results: r.append(store.get(A).value)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [Secret(b"1")] * 6


def test_a_token_that_hangs_ends_at_the_deadline(label: str, pin: Path) -> None:
    """For who asked and for who waits behind; what waited too long is not done later."""
    quick, patient = (Pkcs11Token(softhsm.MODULE, label, Origin(file=pin), deadline=seconds) for seconds in (0.2, 30))
    leave, done = threading.Event(), []
    for number in range(2):
        with pytest.raises(EnvironmentFault) as late:
            quick.run(lambda _, number=number: (leave.wait(20), done.append(number)))
        assert late.value.code == "deadline"
    leave.set()
    patient.run(lambda _: done.append(2))
    assert done == [0, 2]


def test_python_s_tls_is_not_disturbed(label: str, pin: Path) -> None:
    """SoftHSM uses the process's OpenSSL, and leaves errors in the queue of the thread that called it."""
    import ssl

    from enclave_cc.crypto import self_signed
    from enclave_cc.crypto.jws import SigningKey

    key = SigningKey.generate("ES256").to_pem()
    certificate = self_signed.make_certificate(key, common_name="x", hosts=["localhost"], not_before=0, not_after=4_000_000_000)
    (pin.parent / "pem").write_bytes(certificate + key)
    server_context, client_context = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        ssl.create_default_context(cadata=certificate.decode()),
    )
    server_context.load_cert_chain(pin.parent / "pem")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server, client = (
        server_context.wrap_bio(up, down, server_side=True),
        client_context.wrap_bio(down, up, server_hostname="localhost"),
    )
    for _ in range(4):
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    store = open_store(label, pin)
    store._objects._token.run(lambda _: store._objects._token._module.restart())  # type: ignore[attr-defined]
    for _number in range(3):
        store.put(A, Secret(b"1"))
        client.write(b"ping")
        assert server.read() == b"ping"
        server.write(b"pong")
        assert client.read() == b"pong"


def test_private_and_sealed_on_disk(label: str, pin: Path) -> None:
    canary = os.urandom(8).hex().encode() * 4
    store = open_store(label, pin)
    store.put(A, Secret(canary))
    for path in (softhsm.find_directory() / "tokens").rglob("*"):
        assert not path.is_file() or canary[:16] not in path.read_bytes()


def test_another_process_takes_turns(label: str, pin: Path) -> None:
    """Two processes, one token, one path: no number is given twice."""
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        sys.path[:0] = sys.argv[3:]
        from test_pkcs11 import A, Secret, open_store
        store = open_store(sys.argv[1], Path(sys.argv[2]))
        print([store.put(A, Secret(b"x")) for _ in range(8)])
    """)
    paths = [str(Path(__file__).parent), str(Path(softhsm.__file__).parent)]
    children = [
        subprocess.Popen([sys.executable, "-c", program, label, str(pin), *paths], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    given: list[int] = []
    for child in children:
        out, _ = child.communicate(timeout=120)
        given += eval(out)
    assert sorted(given) == list(range(1, 17))
    store = open_store(label, pin)
    store.put(B, Secret(b"1"))
    assert store.get(A).version == 16
    assert names(store) == [str(A), str(B)]
