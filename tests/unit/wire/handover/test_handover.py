"""Both roles in one test: the run that works, its bytes, and the state table."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace

import pytest
from handover_pair import LIFETIME, Pair, make_enclave, make_release

from enclave_cc.crypto.aead import Aead
from enclave_cc.crypto.exchange import KeyShare
from enclave_cc.crypto.kdf import hkdf_sha256
from enclave_cc.errors import PeerError, UsageError
from enclave_cc.wire.handover import states, transcript
from enclave_cc.wire.handover.messages import Hello, Offer, Proof, SealedRelease, Type, hash_container_id
from enclave_cc.wire.handover.release import Release
from enclave_cc.wire.handover.states import State
from enclave_cc.wire.sgx.identity import EnclaveIdentity


def test_the_release_arrives_whole(pair: Pair) -> None:
    app, agent = pair.app_side(), pair.agent_side()
    assert pair.run(app, agent) == pair.release
    assert app.state is agent.state is State.RELEASED
    assert not agent.is_open(103.0)


def test_message_sizes_are_those_of_the_format(pair: Pair) -> None:
    app, agent = pair.app_side(), pair.agent_side()
    hello = app.hello()
    offer = agent.receive_hello(hello, 101.0)
    proof = app.receive_offer(offer)
    release = agent.receive_proof(proof, 102.0, pair.release)
    assert (len(hello), len(offer), len(proof)) == (584, 488, 536)
    assert len(release) == 24 + len(pair.release.encode()) + 16
    assert [m[:8] for m in (hello, offer, proof, release)] == [b"ECHO\1" + bytes((n, 0, 0)) for n in (1, 2, 3, 4)]
    assert hello[8:40] == hashlib.sha256(b"c1").digest()
    for cls, data in ((Hello, hello), (Offer, offer), (Proof, proof), (SealedRelease, release)):
        assert cls.parse(data).encode() == data


def test_no_key_and_no_statement_is_visible(pair: Pair) -> None:
    app, agent = pair.app_side(), pair.agent_side()
    hello = app.hello()
    offer = agent.receive_hello(hello, 101.0)
    proof = app.receive_offer(offer)
    seen = hello + offer + proof + agent.receive_proof(proof, 102.0, pair.release)
    for blob in pair.release.rootfs.blobs:
        assert blob.key.reveal() not in seen
        assert blob.key.reveal().hex().encode() not in seen
    assert b"/bin/app" not in seen


def test_the_transcript_is_that_of_the_format() -> None:
    """The derivation again, written from the document rather than from the code."""

    def label(text: bytes) -> bytes:
        return (b"enclave-cc/handover/1 " + text).ljust(48, b"\0")

    hello, offer, opening, reported = b"h" * 584, b"o" * 488, b"p" * 88, b"r" * 520
    assert transcript.offer_report_data(hello, offer[:56]) == hashlib.sha256(label(b"offer") + hello + offer[:56]).digest() + bytes(
        32
    )
    assert transcript.proof_report_data(hello, offer, opening) == hashlib.sha256(
        label(b"proof") + hello + offer + opening
    ).digest() + bytes(32)
    ours, theirs = KeyShare(), KeyShare()
    salt = hashlib.sha256(label(b"keys") + hello + offer + reported).digest()
    expected = Aead(hkdf_sha256(theirs.agree(ours.public), salt=salt, info=label(b"agent to app"), size=32))
    keys = transcript.derive_keys(ours, theirs.public, hello, offer, reported)
    assert expected.decrypt(bytes(12), keys.agent_to_app.encrypt(bytes(12), b"x", b"a"), b"a") == b"x"
    with pytest.raises(PeerError):
        keys.app_to_agent.decrypt(bytes(12), keys.agent_to_app.encrypt(bytes(12), b"x", b"a"), b"a")


def test_each_label_opens_a_domain_of_its_own() -> None:
    assert len({transcript._label(text) for text in ("offer", "proof", "keys", "app to agent", "agent to app")}) == 5


def test_identity_by_signer_and_product(pair: Pair) -> None:
    by_signer = EnclaveIdentity(mr_signer=pair.app.body.mr_signer, isv_prod_id=2, min_isv_svn=1)
    assert pair.run(pair.app_side(), pair.agent_side(app=by_signer)) == pair.release
    old = make_enclave(pair.cpu, "app", product=2, svn=0)
    with pytest.raises(PeerError) as caught:
        pair.run(pair.app_side(app=old), pair.agent_side(app=by_signer))
    assert caught.value.code == "identity-refused"


def test_a_session_expires(pair: Pair) -> None:
    app, agent = pair.app_side(), pair.agent_side()
    proof = app.receive_offer(agent.receive_hello(app.hello(), 101.0))
    assert agent.is_open(100.0 + LIFETIME - 0.1)
    assert not agent.is_open(100.0 + LIFETIME)
    with pytest.raises(PeerError, match="expired"):
        agent.receive_proof(proof, 100.0 + LIFETIME, pair.release)


def test_a_release_that_is_too_large_is_our_bug(pair: Pair) -> None:
    app, agent = pair.app_side(), pair.agent_side()
    proof = app.receive_offer(agent.receive_hello(app.hello(), 101.0))
    launch = replace(pair.release.launch, env=("A=" + "x" * (2 << 20),))
    with pytest.raises(UsageError) as caught:
        agent.receive_proof(proof, 102.0, Release(launch, pair.release.rootfs))
    assert caught.value.code == "too-large"


@pytest.mark.parametrize("change", ["version", "extra", "launch", "rootfs", "text", "list"])
def test_release_documents_of_another_shape(change: str) -> None:
    document = json.loads(make_release().encode())
    if change == "version":
        document["version"] = 2
    elif change in ("launch", "rootfs"):
        document[change] = {}
    elif change == "extra":
        document["more"] = 1
    data = {"text": b"{", "list": b"[]"}.get(change, json.dumps(document).encode())
    with pytest.raises(PeerError) as caught:
        Release.parse(data)
    assert caught.value.code == "malformed"
    assert "4b4b" not in str(caught.value)  # no key in a message


@pytest.mark.parametrize("bad", ["", "x" * 257, "a\nb", "a\0b"])
def test_container_ids(bad: str) -> None:
    with pytest.raises(PeerError):
        hash_container_id(bad)


def test_the_table_allows_one_order_only() -> None:
    legal = [(State.NEW, Type.HELLO), (State.GREETED, Type.OFFER), (State.OFFERED, Type.PROOF), (State.PROVEN, Type.RELEASE)]
    for state, message in itertools.product(State, Type):
        if (state, message) in legal:
            assert states.move(state, message) is list(State)[list(State).index(state) + 1]
        else:
            with pytest.raises(PeerError) as caught:
                states.move(state, message)
            assert caught.value.code in ("handover-replayed", "handover-refused")


def test_misuse_of_the_app_side_is_refused(pair: Pair) -> None:
    app = pair.app_side()
    app.hello()
    with pytest.raises(PeerError) as caught:
        app.hello()
    assert caught.value.code == "handover-replayed"
    with pytest.raises(PeerError) as caught:
        pair.app_side().receive_offer(b"")
    assert caught.value.code == "handover-refused"
