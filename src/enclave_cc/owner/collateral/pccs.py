"""Collateral from a PCCS, or Intel's PCS, over HTTPS: five GETs of API v4 make one bundle."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from enclave_cc.errors import EnclaveCcError, PeerError
from enclave_cc.record import record
from enclave_cc.transport.https import Codes, HttpsClient, Response
from enclave_cc.wire.sgx import pcs
from enclave_cc.wire.sgx.collateral import Collateral

_CODES = Codes("kbs-unreachable", "kbs-identity", "kbs-protocol")
_CRL_LIMIT = 8 << 20


@record
class PccsSettings:
    """`url`: up to, without, `/sgx/certification/v4`; `certificate_pem` pins the server, without it the system's
    authorities decide; `root_crl_url`: where the root's CRL is if the service has no `rootcacrl`, as Intel's has not;
    `deadline`: seconds for a whole bundle; `update`: "standard" or "early", Intel's word for which TCB recovery."""

    url: str
    certificate_pem: str | None = None
    root_crl_url: str | None = None
    deadline: float = 10.0
    update: str = "standard"


class PccsClient:
    """Fetches bundles; keeps nothing. Safe for many threads."""

    def __init__(self, settings: PccsSettings) -> None:
        self._settings = settings
        self._http = HttpsClient(settings.url, certificate_pem=settings.certificate_pem, deadline=settings.deadline, codes=_CODES)
        self._root_crl: HttpsClient | None = None
        if settings.root_crl_url is not None:
            parts = urlsplit(settings.root_crl_url)
            origin = f"{parts.scheme}://{parts.netloc}"
            self._root_crl = HttpsClient(origin, certificate_pem=None, deadline=settings.deadline, codes=_CODES)
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(5, "pccs")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._http.close()
        if self._root_crl is not None:
            self._root_crl.close()

    def fetch(self, fmspc: str, ca: str) -> Collateral:
        """The bundle for an FMSPC (12 hex digits) and "platform" or "processor"; not verified.

        Raises `PeerError("collateral-refused")`: the service is not reachable, not the pinned one, has no such
        platform, or answers something else.
        """
        settings = self._settings
        paths = {
            "crl": f"{pcs.PREFIX}/pckcrl?ca={ca}&encoding=der",
            "tcb": f"{pcs.PREFIX}/tcb?fmspc={fmspc.upper()}&update={settings.update}",
            "qe": f"{pcs.PREFIX}/qe/identity?update={settings.update}",
        }
        asked = {name: self._pool.submit(self._get, self._http, path) for name, path in paths.items()}
        root = self._pool.submit(self._get_root_crl)
        try:
            crl, tcb, qe = (asked[name].result(settings.deadline + 1) for name in ("crl", "tcb", "qe"))
            tcb_info, tcb_signature = pcs.parse_signed_document(tcb.body, "tcbInfo")
            qe_identity, qe_signature = pcs.parse_signed_document(qe.body, "enclaveIdentity")
            return Collateral(
                pck_crl_issuer_chain=_chain(crl, pcs.PCK_CRL_CHAIN),
                root_ca_crl=pcs.parse_crl(root.result(settings.deadline + 1).body),
                pck_crl=pcs.parse_crl(crl.body),
                tcb_info_issuer_chain=_chain(tcb, pcs.TCB_INFO_CHAIN),
                tcb_info=tcb_info,
                tcb_info_signature=tcb_signature,
                qe_identity_issuer_chain=_chain(qe, pcs.QE_IDENTITY_CHAIN),
                qe_identity=qe_identity,
                qe_identity_signature=qe_signature,
            )
        except TimeoutError as error:
            raise PeerError("collateral-refused", f"{self._http.origin} did not answer in time") from error
        except EnclaveCcError as error:
            raise PeerError("collateral-refused", f"{self._http.origin}: {error.what}", _FIX) from error

    def _get_root_crl(self) -> Response:
        if self._root_crl is None or self._settings.root_crl_url is None:
            return self._get(self._http, f"{pcs.PREFIX}/rootcacrl")
        parts = urlsplit(self._settings.root_crl_url)
        return self._get(self._root_crl, parts.path + (f"?{parts.query}" if parts.query else ""))

    def _get(self, http: HttpsClient, path: str) -> Response:
        answer = http.request("GET", path, max_body=_CRL_LIMIT)
        if answer.status != 200:
            raise PeerError(
                "collateral-refused", f"{path.split('?', maxsplit=1)[0].rsplit('/', 1)[-1]} is answered with status {answer.status}"
            )
        return answer


_FIX = "Check [collateral] url in kbs.toml and the service, or give collateral with `enclave-cc kbs root add`."


def _chain(answer: Response, names: Sequence[str]) -> str:
    return pcs.parse_issuer_chain(next((value for value in map(answer.header, names) if value is not None), None))
