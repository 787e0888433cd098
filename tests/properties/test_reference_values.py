"""Reference values from outside either parse or raise `PeerError`."""

from __future__ import annotations

import contextlib
import json

import cbor2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enclave_cc.crypto.signing_key import SigningKey
from enclave_cc.errors import PeerError
from enclave_cc.owner.reference import corim, envelope, rvps, statement, swid

KEY = SigningKey.generate()
MODEST = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NUMBERS = st.integers(min_value=-2, max_value=14)
LEAVES = st.none() | st.booleans() | NUMBERS | st.binary(max_size=20) | st.text(max_size=8) | st.uuids()
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NUMBERS, inner, max_size=5),
    max_leaves=15,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["_type", "subject", "digest", "mrEnclave", "annotations", "role", "predicate", "buildDefinition", "builder"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@MODEST
@given(TREES, TREES, st.sampled_from([501, 506, 505, 18, 560]))
def test_corims_of_any_shape(comid: object, other: object, tag: int) -> None:
    for document in (
        cbor2.CBORTag(501, {0: "x", 1: [cbor2.CBORTag(tag, cbor2.dumps(comid)), cbor2.CBORTag(tag, other)]}),
        cbor2.CBORTag(501, {0: "x", 1: [cbor2.CBORTag(506, {4: {0: [[{0: other}, [{0: comid, 1: other}]]]}})]}),
        cbor2.CBORTag(tag, comid),
    ):
        with contextlib.suppress(PeerError):
            corim.extract(cbor2.dumps(document))


@MODEST
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    for parse in (corim.extract, swid.extract, rvps.parse_message, lambda raw: statement.verify(raw, {"k": KEY.public})):
        with contextlib.suppress(PeerError):
            parse(data)


@MODEST
@given(JSON, JSON)
def test_statements_of_any_shape(whole: object, part: object) -> None:
    fixed = {"_type": statement.STATEMENT_TYPE, "predicateType": statement.PREDICATE_TYPE}
    definition = {"buildType": statement.BUILD_TYPE, "resolvedDependencies": part}
    for document in (
        whole,
        {**fixed, "subject": part, "predicate": whole},
        {
            **fixed,
            "subject": [part],
            "predicate": {"buildDefinition": definition, "runDetails": {"builder": {"id": "x"}, "metadata": whole}},
        },
    ):
        body = envelope.sign(json.dumps(document).encode(), statement.PAYLOAD_TYPE, KEY)
        with contextlib.suppress(PeerError):
            statement.verify(body, {"k": KEY.public})


@MODEST
@given(st.text(alphabet='<>/="& abMetaPayloadResourcehxmlns:', max_size=120))
def test_xml_of_any_shape(text: str) -> None:
    with contextlib.suppress(PeerError):
        swid.extract(text.encode())
