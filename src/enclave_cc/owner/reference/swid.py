"""Reference values of a SWID tag with TCG RIM bindings (ISO/IEC 19770-2:2015 XML), as NVIDIA publishes for its GPUs.

Trustee `rvps/src/extractors/swid`: each `Resource` of type "Measurement" in the tag's `Payload` becomes the list
`MANUFACTURER.EDITION.measurement_INDEX` of its SHA-384 hashes; hashes of zeros mean that nothing is measured there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from enclave_cc.errors import PeerError, foreign

_SWID = "{http://standards.iso.org/iso/19770/-2/2015/schema.xsd}"
_RIM = "{https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/}"
_HASH = "{http://www.w3.org/2001/04/xmlenc#sha384}"
_WHAT = "the SWID tag"
_MAX_ELEMENTS = 20_000


def extract(payload: bytes) -> Mapping[str, Any]:
    """Lists of hashes by name. Raises `PeerError("malformed")`."""
    root = _parse(payload)
    meta, content = root.find(f".//{_SWID}Meta"), root.find(f".//{_SWID}Payload")
    if meta is None or content is None:
        raise PeerError("malformed", f"{_WHAT} has no {'Meta' if meta is None else 'Payload'} element")
    manufacturer, edition = meta.get(f"{_RIM}PlatformManufacturerStr"), meta.get("edition")
    if manufacturer is None or edition is None:
        raise PeerError("malformed", f"{_WHAT} names no manufacturer, or no edition")
    values: dict[str, Any] = {}
    for resource in content.iter(f"{_SWID}Resource"):
        if resource.get("type") != "Measurement":
            continue
        index = resource.get("index")
        if index is None:
            raise PeerError("malformed", f"a measurement of {_WHAT} has no index")
        hashes: list[str] = []
        while (digest := resource.get(f"{_HASH}Hash{len(hashes)}")) is not None:
            hashes.append(digest)
        known = [digest for digest in hashes if digest.strip("0")]
        if known:
            # Upstream replaces dashes because Rego's dotted paths have none.
            values[f"{manufacturer.replace(' ', '_')}.{edition}.measurement_{index}".replace("-", "_")] = known
    return values


def _parse(payload: bytes) -> ElementTree.Element:
    """XML without a document type: no entities, nothing to expand or fetch."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate("utf-8", "}")
    parser.buffer_text = True
    count = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if count > _MAX_ELEMENTS:
            raise PeerError("malformed", f"{_WHAT} has more than {_MAX_ELEMENTS} elements")
        builder.start(_clark(name), {_clark(key): value for key, value in attributes.items()})

    def refuse(*_: object) -> None:
        raise PeerError("malformed", f"{_WHAT} has a document type")

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda name: builder.end(_clark(name))
    parser.StartDoctypeDeclHandler = refuse
    try:
        payload.decode()  # upstream takes UTF-8 alone
        parser.Parse(payload, True)
        return builder.close()
    except (expat.ExpatError, ElementTree.ParseError, AssertionError, ValueError) as error:
        raise PeerError("malformed", f"{_WHAT} is not XML: {foreign(error)}") from error


def _clark(name: str) -> str:
    """expat's `uri}local` as ElementTree's `{uri}local`."""
    return f"{{{name}" if "}" in name else name
