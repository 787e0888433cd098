"""Notes, checkpoints and proofs as text: C2SP's own examples, and every form that is not theirs."""

from __future__ import annotations

import base64

import pytest

from enclave_cc.crypto import ed25519, jws
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError, UsageError
from enclave_cc.wire.tlog.checkpoint import Checkpoint, verify_checkpoint
from enclave_cc.wire.tlog.note import Note, NoteSigner, VerifierKey
from enclave_cc.wire.tlog.proof_text import EntryProof, verify_entry
from enclave_cc.wire.tlog.proofs import prove_inclusion
from enclave_cc.wire.tlog.tree import hash_children, hash_leaf

# C2SP signed-note, "Example"
VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
NOTE = (
    "This is an example message.\n\n"
    "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
).encode()
# C2SP tlog-checkpoint and tlog-cosignature, the log's own line
CHECKPOINT = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"

SIGNER = NoteSigner("log.example/audit", ed25519.SigningKey.generate())
KEYS = [SIGNER.verifier]


def test_the_specifications_note_verifies() -> None:
    key = VerifierKey.parse(VKEY)
    assert str(key) == VKEY
    note = Note.parse(NOTE)
    assert note.verify([key]) == key
    assert note.text == "This is an example message.\n"
    assert note.encode() == NOTE


def test_the_specifications_checkpoint() -> None:
    parsed = Checkpoint.parse(CHECKPOINT)
    assert (parsed.origin, parsed.size) == ("example.com/behind-the-sofa", 20852163)
    assert parsed.encode() == CHECKPOINT


def test_what_was_signed_verifies() -> None:
    checkpoint = Checkpoint(SIGNER.name, 7, bytes(32), ("an extension",))
    data = checkpoint.sign(SIGNER).encode()
    assert verify_checkpoint(data, KEYS) == checkpoint
    assert str(VerifierKey.parse(str(SIGNER.verifier))) == str(SIGNER.verifier)
    assert "SigningKey" not in repr(SIGNER)


def test_keys_of_others_are_not_looked_at() -> None:
    other = NoteSigner("witness.example", ed25519.SigningKey.generate())
    text = Checkpoint(SIGNER.name, 7, bytes(32)).encode()
    both = Note(text, other.sign(text).signatures + SIGNER.sign(text).signatures)
    assert verify_checkpoint(both.encode(), KEYS).size == 7
    with pytest.raises(PeerError, match="no signature of a key"):
        verify_checkpoint(other.sign(text).encode(), KEYS)


def test_one_wrong_signature_of_a_known_key_condemns_the_note() -> None:
    text = Checkpoint(SIGNER.name, 7, bytes(32)).encode()
    right = SIGNER.sign(text).signatures
    wrong = SIGNER.sign(text + "more\n").signatures
    for signatures in (wrong, right + wrong, wrong + right):
        with pytest.raises(PeerError, match="is wrong") as caught:
            verify_checkpoint(Note(text, signatures).encode(), KEYS)
        assert caught.value.code == "audit-signature"


def test_a_key_signs_for_its_own_log_only() -> None:
    data = Checkpoint("another.example/log", 7, bytes(32)).sign(SIGNER).encode()
    with pytest.raises(PeerError, match="another log") as caught:
        verify_checkpoint(data, KEYS)
    assert caught.value.code == "audit-signature"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text\n",
        b"text\n\n",
        NOTE[:-1],
        NOTE.replace("—".encode(), b"-"),
        NOTE.replace(b"\n\n", b"\n"),
        NOTE.replace(b"message", b"mess\tage"),
        NOTE.replace(b"message", b"mess\rage"),
        NOTE.replace(b"message", b"mess\xffage"),
        NOTE.replace(b"com/foo Uw2", b"com/f+o Uw2"),
        NOTE.replace(b"com/foo Uw2", b"com/foo  Uw2"),
        NOTE.replace(b"com/foo Uw2", "com/\u2003foo Uw2".encode()),
        NOTE.replace(b"yaQM=", b"yaQM"),
        NOTE.replace(b"yaQM=", b"yaQN="),
        NOTE.replace(b"yaQM=", b"ya-_="),
        NOTE[: NOTE.index(b"Uw2Q")] + b"Uw2QOg==\n",
        NOTE + b"\n",
        NOTE + b"more\n",
        NOTE + NOTE.splitlines(keepends=True)[-1] * 64,
        b"x" * 200_000 + NOTE,
    ],
)
def test_what_is_no_note_is_refused(data: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        Note.parse(data)
    assert caught.value.code == "malformed"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "origin\n1\n",
        CHECKPOINT[:-1],
        CHECKPOINT + "\n",
        CHECKPOINT + "\nextension\n",
        "\n" + CHECKPOINT,
        CHECKPOINT.replace("2085", "02085"),
        CHECKPOINT.replace("2085", "-2085"),
        CHECKPOINT.replace("2085", "+2085"),
        CHECKPOINT.replace("2085", "2_085"),
        CHECKPOINT.replace("2085", "\u0662\u0660"),
        CHECKPOINT.replace("20852163", "9" * 19),
        CHECKPOINT.replace("20852163", "9" * 5000),
        CHECKPOINT.replace("CsUY", ""),
        CHECKPOINT.replace("jxq2I=", "jxq2J="),
        "o" * 300 + CHECKPOINT,
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(PeerError) as caught:
        Checkpoint.parse(text)
    assert caught.value.code == "malformed"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+530d903a",
        VKEY.replace("530d903a", "530d903b"),
        VKEY.replace("530d903a", "530D903A"),
        VKEY.replace("+Aeky", "+Beky"),
        VKEY[:-4],
        VKEY.replace("example", "exa mple"),
        "+" + VKEY.split("+", 1)[1],
        VKEY + "\n",
    ],
)
def test_what_is_no_verifier_key_is_refused(text: str) -> None:
    with pytest.raises(PeerError) as caught:
        VerifierKey.parse(text)
    assert caught.value.code == "malformed"


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u00a0b", "x" * 257])
def test_a_name_that_no_note_can_bear(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name"):
        NoteSigner(name, ed25519.SigningKey.generate())


def make_proof(entry: bytes = b"entry", extra: bytes | None = b"entry") -> EntryProof:
    other = hash_leaf(b"other")
    nodes = {(0, 0): hash_leaf(entry), (0, 1): other}
    hashes = prove_inclusion(0, 2, lambda level, index: nodes[level, index])
    checkpoint = Checkpoint(SIGNER.name, 2, hash_children(nodes[0, 0], other)).sign(SIGNER).encode()
    return EntryProof(0, tuple(hashes), checkpoint, extra)


def test_a_proof_stands_alone() -> None:
    for extra in (b"entry", None):
        proof = make_proof(extra=extra)
        again = EntryProof.parse(proof.encode())
        assert again == proof
        assert verify_entry(again, b"entry", KEYS).size == 2
        with pytest.raises(PeerError, match="does not lead to the root"):
            verify_entry(again, b"another entry", KEYS)
    alone = EntryProof(0, (), Checkpoint(SIGNER.name, 1, hash_leaf(b"e")).sign(SIGNER).encode())
    assert verify_entry(EntryProof.parse(alone.encode()), b"e", KEYS).size == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"proof@v1", b"proof@v2"),
        (b"index 0", b"index 00"),
        (b"index 0\n", b""),
        (b"index 0", b"index"),
        (b"extra ", b"extra  "),
        (b"extra ", b"extra"),
        (b"\n\n", b"\n"),
        (b"index 0\n", b"index 0\n" + base64.b64encode(bytes(32)) * 2 + b"\n"),
        (b"index 0\n", b"index 0\n" + (base64.b64encode(bytes(32)) + b"\n") * 70),
        (b"index 0\n", b"index 0\nAAAA\n"),
        (b"index 0", "index \u0660".encode()),
    ],
)
def test_what_is_no_proof_is_refused(old: bytes, new: bytes) -> None:
    data = make_proof().encode()
    assert old in data
    with pytest.raises(PeerError) as caught:
        EntryProof.parse(data.replace(old, new, 1))
    assert caught.value.code == "malformed"


def test_ed25519_keys_survive_storage() -> None:
    key = ed25519.SigningKey.generate()
    again = ed25519.SigningKey.from_pem(key.to_pem())
    ed25519.verify(key.public, again.sign(b"x"), b"x", code="audit-signature", what="wrong")
    for pem in (b"", b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"):
        with pytest.raises(UsageError, match="bad-config"):
            ed25519.SigningKey.from_pem(Secret(pem))
    with pytest.raises(UsageError, match="not Ed25519"):
        ed25519.SigningKey.from_pem(Secret(jws.SigningKey.generate("ES256").to_pem()))
