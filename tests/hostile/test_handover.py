"""The host carries the handover's messages: it changes, repeats, mixes, reflects and delays them, and brings enclaves
of its own. Every trick ends in a coded refusal, and no release is made.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "suites"))

from handover_pair import LIFETIME, Enclave, Pair, make_cpu, make_enclave

from enclave_cc.errors import PeerError
from enclave_cc.wire.handover.agent_side import AgentSide
from enclave_cc.wire.handover.app_side import AppSide
from enclave_cc.wire.handover.messages import Hello, Offer, Proof
from enclave_cc.wire.handover.states import State
from enclave_cc.wire.sgx.report import TargetInfo

REFUSALS = {"malformed", "handover-refused", "handover-replayed", "report-refused", "identity-refused", "debug-enclave"}


@pytest.fixture
def pair() -> Pair:
    return Pair()


def refused(action: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(PeerError) as caught:
        action(*arguments)
    assert caught.value.code in REFUSALS
    return caught.value.code


def begin(pair: Pair) -> tuple[AppSide, AgentSide, bytes, bytes]:
    app, agent = pair.app_side(), pair.agent_side()
    hello = app.hello()
    return app, agent, hello, agent.receive_hello(hello, 101.0)


# -------------------------------------------------------------- changed bytes


def flips(size: int, seed: int) -> list[tuple[int, int]]:
    """Every offset, each with one bit."""
    rng = random.Random(seed)
    return [(offset, 1 << rng.randrange(8)) for offset in range(size)]


def flip(data: bytes, offset: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[offset] ^= bit
    return bytes(changed)


def test_a_flipped_bit_anywhere_in_the_hello(pair: Pair) -> None:
    for offset, bit in flips(Hello.SIZE, 1):
        app, agent = pair.app_side(), pair.agent_side()
        hello = app.hello()
        changed = flip(hello, offset, bit)
        refused(lambda app, agent, changed: app.receive_offer(agent.receive_hello(changed, 101.0)), app, agent, changed)


def test_a_flipped_bit_anywhere_in_the_offer(pair: Pair) -> None:
    for offset, bit in flips(Offer.SIZE, 2):
        app, _, _, offer = begin(pair)
        refused(app.receive_offer, flip(offer, offset, bit))
        assert app.state is State.REFUSED


def test_a_flipped_bit_anywhere_in_the_proof(pair: Pair) -> None:
    for offset, bit in flips(Proof.SIZE, 3):
        app, agent, _, offer = begin(pair)
        changed = flip(app.receive_offer(offer), offset, bit)
        refused(agent.receive_proof, changed, 102.0, pair.release)
        assert agent.state is State.REFUSED


def test_a_flipped_bit_anywhere_in_the_release(pair: Pair) -> None:
    app, agent, _, offer = begin(pair)
    release = agent.receive_proof(app.receive_offer(offer), 102.0, pair.release)
    keys, session = app._keys, app._session
    for offset, bit in flips(len(release), 4):
        # The same moment of the same handover again: only the changed byte differs.
        app.state, app._keys, app._session = State.PROVEN, keys, session
        assert refused(app.receive_release, flip(release, offset, bit)) in {"malformed", "handover-refused"}
    app.state, app._keys = State.PROVEN, keys
    assert app.receive_release(release) == pair.release


@pytest.mark.parametrize("cut", [0, 1, 8, 24, 100, -1])
def test_cut_and_lengthened_messages(pair: Pair, cut: int) -> None:
    app, agent, hello, offer = begin(pair)
    proof = app.receive_offer(offer)
    for data in (hello, proof):
        for changed in (data[:cut], data + b"\0"):
            other = pair.agent_side()
            if data is hello:
                assert refused(other.receive_hello, changed, 101.0) == "malformed"
    assert refused(agent.receive_proof, proof[:cut], 102.0, pair.release) == "malformed"


# -------------------------------------------------------------- repeated, mixed, reflected, late


def test_a_proof_is_accepted_once(pair: Pair) -> None:
    app, agent, _, offer = begin(pair)
    proof = app.receive_offer(offer)
    agent.receive_proof(proof, 102.0, pair.release)
    assert refused(agent.receive_proof, proof, 102.0, pair.release) == "handover-replayed"


def test_a_hello_is_answered_once(pair: Pair) -> None:
    _, agent, hello, _ = begin(pair)
    assert refused(agent.receive_hello, hello, 101.0) == "handover-replayed"


def test_an_offer_and_a_release_are_taken_once(pair: Pair) -> None:
    app, agent, _, offer = begin(pair)
    release = agent.receive_proof(app.receive_offer(offer), 102.0, pair.release)
    app.receive_release(release)
    assert refused(app.receive_release, release) == "handover-replayed"
    app, _, _, offer = begin(pair)
    app.receive_offer(offer)
    assert refused(app.receive_offer, offer) == "handover-replayed"


def test_messages_of_an_earlier_run_do_not_fit_a_later_one(pair: Pair) -> None:
    old_app, old_agent, _, old_offer = begin(pair)
    old_proof = old_app.receive_offer(old_offer)
    old_release = old_agent.receive_proof(old_proof, 102.0, pair.release)

    app, _, _, _ = begin(pair)
    assert refused(app.receive_offer, old_offer) == "handover-refused"
    _, agent, _, _ = begin(pair)
    assert refused(agent.receive_proof, old_proof, 102.0, pair.release) == "handover-refused"
    app, _, _, offer = begin(pair)
    app.receive_offer(offer)
    assert refused(app.receive_release, old_release) == "handover-refused"


def test_an_old_proof_with_the_new_session_id(pair: Pair) -> None:
    old_app, _, _, old_offer = begin(pair)
    old_proof = old_app.receive_offer(old_offer)
    _, agent, _, offer = begin(pair)
    changed = old_proof[:8] + offer[8:24] + old_proof[24:]
    assert refused(agent.receive_proof, changed, 102.0, pair.release) == "handover-refused"


def test_two_runs_crossed_over(pair: Pair) -> None:
    """The offer of one agent side to the app of another run: nobody gets a key that the other has."""
    first, second = pair.app_side(), pair.app_side()
    agent = pair.agent_side()
    first.hello()
    offer = agent.receive_hello(second.hello(), 101.0)
    assert refused(first.receive_offer, offer) == "handover-refused"


def test_the_agents_own_message_reflected(pair: Pair) -> None:
    app, agent, hello, offer = begin(pair)
    assert refused(app.receive_offer, hello) == "malformed"
    parsed = Offer.parse(offer)
    # The agent's share and REPORT, in the dress of a proof.
    forged = Proof(session=parsed.session, share=parsed.share, nonce=bytes(32), report=parsed.report, confirmation=bytes(16))
    assert refused(agent.receive_proof, forged.encode(), 102.0, pair.release) == "handover-refused"
    _, agent, _, offer = begin(pair)
    parsed = Offer.parse(offer)
    forged = replace(forged, session=parsed.session, share=b"\x09" + bytes(31), report=parsed.report)
    assert refused(agent.receive_proof, forged.encode(), 102.0, pair.release) == "report-refused"


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_a_share_of_low_order(pair: Pair, point: bytes) -> None:
    """Even a genuine app enclave that was made to send one gets nothing; nor does a genuine agent."""
    app, agent, hello, offer = begin(pair)
    parsed = Offer.parse(offer)
    from enclave_cc.wire.handover import transcript

    opening = Proof.encode_opening(parsed.session, point, bytes(32))
    report = pair.app.simulated.ereport(TargetInfo.of(parsed.report.body), transcript.proof_report_data(hello, offer, opening))
    data = opening + report.encode() + bytes(16)
    assert refused(agent.receive_proof, data, 102.0, pair.release) == "handover-refused"

    opening = Offer.encode_opening(bytes(16), point)
    weak = pair.agent.simulated.ereport(pair.app.simulated.target_info(), transcript.offer_report_data(hello, opening))
    assert refused(app.receive_offer, opening + weak.encode()) == "handover-refused"


def test_a_stale_session(pair: Pair) -> None:
    app, agent, _, offer = begin(pair)
    proof = app.receive_offer(offer)
    assert refused(agent.receive_proof, proof, 100.0 + LIFETIME, pair.release) == "handover-refused"
    assert refused(agent.receive_proof, proof, 102.0, pair.release) == "handover-refused"
    late = pair.agent_side()
    assert refused(late.receive_hello, pair.app_side().hello(), 100.0 + LIFETIME) == "handover-refused"


# -------------------------------------------------------------- wrong container


def test_a_hello_for_another_container(pair: Pair) -> None:
    agent = pair.agent_side(container_id="c2")
    assert refused(agent.receive_hello, pair.app_side(container_id="c1").hello(), 101.0) == "handover-refused"


def test_a_release_for_another_container(pair: Pair) -> None:
    """An agent that mixed up its containers: the app notices."""
    app, agent = pair.app_side(container_id="c2"), pair.agent_side(container_id="c2")
    assert refused(pair.run, app, agent) == "handover-refused"


# -------------------------------------------------------------- wrong enclaves


def run_with(pair: Pair, *, app: Enclave | None = None, agent: Enclave | None = None) -> Callable[[], object]:
    return lambda: pair.run(pair.app_side(app=app), pair.agent_side(agent=agent))


def test_another_app(pair: Pair) -> None:
    assert refused(run_with(pair, app=make_enclave(pair.cpu, "other", product=2))) == "identity-refused"


def test_another_agent(pair: Pair) -> None:
    assert refused(run_with(pair, agent=make_enclave(pair.cpu, "other", product=1))) == "identity-refused"


def test_a_debug_app(pair: Pair) -> None:
    assert refused(run_with(pair, app=make_enclave(pair.cpu, "app", product=2, debug=True))) == "debug-enclave"


def test_a_debug_agent(pair: Pair) -> None:
    assert refused(run_with(pair, agent=make_enclave(pair.cpu, "agent", product=1, debug=True))) == "debug-enclave"


def test_an_app_of_another_machine(pair: Pair) -> None:
    assert refused(run_with(pair, app=make_enclave(make_cpu(b"elsewhere"), "app", product=2))) == "report-refused"


def test_an_agent_of_another_machine(pair: Pair) -> None:
    assert refused(run_with(pair, agent=make_enclave(make_cpu(b"elsewhere"), "agent", product=1))) == "report-refused"


def test_the_agent_itself_as_app(pair: Pair) -> None:
    assert refused(run_with(pair, app=pair.agent)) == "identity-refused"


def test_the_app_itself_as_agent(pair: Pair) -> None:
    assert refused(run_with(pair, agent=pair.app)) == "identity-refused"


def test_a_proof_by_another_enclave_than_the_hello_named(pair: Pair) -> None:
    """The hello names one genuine app enclave, the proof comes from another with other attributes."""
    from enclave_cc.wire.handover import transcript

    agent = pair.agent_side()
    named = make_enclave(pair.cpu, "app", product=2, debug=True)
    hello = Hello(container=pair.app_side().hello()[8:40], nonce=bytes(32), target=named.simulated.target_info()).encode()
    offer = agent.receive_hello(hello, 101.0)
    parsed = Offer.parse(offer)
    opening = Proof.encode_opening(parsed.session, b"\x09" + bytes(31), bytes(32))
    report = pair.app.simulated.ereport(TargetInfo.of(parsed.report.body), transcript.proof_report_data(hello, offer, opening))
    data = opening + report.encode() + bytes(16)
    assert refused(agent.receive_proof, data, 102.0, pair.release) == "handover-refused"


def test_the_host_in_the_middle_with_a_key_of_its_own(pair: Pair) -> None:
    """It swaps the app's share for its own: the app's REPORT does not cover that one."""
    from enclave_cc.crypto.exchange import KeyShare

    app, agent, _, offer = begin(pair)
    proof = app.receive_offer(offer)
    changed = proof[:24] + KeyShare().public + proof[56:]
    assert refused(agent.receive_proof, changed, 102.0, pair.release) == "handover-refused"
