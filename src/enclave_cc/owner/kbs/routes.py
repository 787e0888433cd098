"""The whole service behind HTTP: every path of the KBS, each with its gate.

A request comes as method, path, query, cookie, bearer token and body; an answer goes back as status, type and body.
Everything here but `find` runs in a worker thread.
"""

from __future__ import annotations

from enclave_cc.errors import EnclaveCcError, PeerError
from enclave_cc.owner.audit.export import DatabaseSource
from enclave_cc.owner.kbs import openapi
from enclave_cc.owner.kbs.admin import AdminGate, Administrator
from enclave_cc.owner.kbs.admin_refusals import explain_admin
from enclave_cc.owner.kbs.attester_paths import AttesterPaths
from enclave_cc.owner.kbs.audit_paths import AuditPaths
from enclave_cc.owner.kbs.audit_trail import AuditTrail
from enclave_cc.owner.kbs.broker import KeyBroker
from enclave_cc.owner.kbs.decision_paths import DecisionPaths
from enclave_cc.owner.kbs.http import TEXT, HttpAnswer, HttpRequest, PathUnknown
from enclave_cc.owner.kbs.metrics import CONTENT_TYPE, Metrics
from enclave_cc.owner.kbs.policies import PolicyStore
from enclave_cc.owner.kbs.policy_paths import PolicyPaths
from enclave_cc.owner.kbs.problems import AdminDenied, problem_answer
from enclave_cc.owner.kbs.readiness import Readiness
from enclave_cc.owner.kbs.reference_paths import ReferencePaths
from enclave_cc.owner.kbs.replay_paths import ReplayPaths
from enclave_cc.owner.kbs.request_ids import CURRENT
from enclave_cc.owner.kbs.resource_paths import ResourcePaths
from enclave_cc.owner.kbs.roots import RootStore
from enclave_cc.owner.kbs.routing import ADMIN, PUBLIC, Call, Match, Route, Table
from enclave_cc.owner.page.paths import PagePaths
from enclave_cc.owner.page.sessions import PageSessions
from enclave_cc.owner.reference.store import ReferenceStore
from enclave_cc.owner.resources.store import ResourceStore
from enclave_cc.wire.rcar import messages


class Routes:
    """Answers requests. Safe for many threads."""

    def __init__(
        self,
        broker: KeyBroker,
        gate: AdminGate,
        resources: ResourceStore,
        references: ReferenceStore,
        policies: PolicyStore,
        roots: RootStore,
        trail: AuditTrail,
        audit: DatabaseSource,
        readiness: Readiness,
        metrics: Metrics,
        public_metrics: bool = True,
        page: PageSessions | None = None,
    ) -> None:
        """`public_metrics`: whether `/metrics` is among the paths, or served at an address of its own; `page`: who may look
        at the owner's page, None if there is none."""
        self.metrics = metrics
        self.broker = broker
        self.roots = roots
        self.log = trail.events
        self.readiness = readiness
        self._gate = gate
        pages = () if page is None else PagePaths(gate, page, lambda: self.table, self.log).routes()
        self.table = Table(
            (
                Route("GET", "/healthz", lambda _: HttpAnswer(content_type=TEXT), PUBLIC),
                Route("GET", "/openapi.json", lambda _: HttpAnswer(body=openapi.read()), PUBLIC),
                *((Route("GET", "/metrics", self._render_metrics, PUBLIC),) if public_metrics else ()),
                *readiness.routes(),
                *AttesterPaths(broker).routes(),
                *ResourcePaths(resources, trail, metrics).routes(),
                *PolicyPaths(policies, trail).routes(),
                *ReferencePaths(references, trail).routes(),
                *DecisionPaths(broker.decisions, roots).routes(),
                *ReplayPaths(broker.recorder, policies, references, roots).routes(),
                *AuditPaths(trail.log, audit).routes(),
                *pages,
            )
        )

    def find(self, request: HttpRequest) -> Match | None:
        """The route of a request's head; None if there is none."""
        return self.table.find(request.method, request.path)

    def authorize(self, request: HttpRequest) -> Administrator:
        """For paths of ADMIN access, by a request's head. Raises `PeerError("unauthenticated" | "forbidden")`."""
        CURRENT.set(request.id)
        try:
            return self._gate.authorize(request.bearer, request.method, request.path, certificate=request.certificate)
        except PeerError as error:
            reason = explain_admin(error, request)
            raise AdminDenied(error, self.broker.decisions.deny("admin", error.code, [reason]).id) from error

    def answer(self, request: HttpRequest, found: Match | None, administrator: Administrator | None = None) -> HttpAnswer:
        """Any request to its answer; never raises an `EnclaveCcError`. `administrator`: from `authorize`, where needed."""
        CURRENT.set(request.id)
        try:
            if found is None:
                raise self._explain_unknown(request)
            if found.route.access == ADMIN and administrator is None:
                administrator = self.authorize(request)
            return found.route.handler(Call(request, found.parameters, administrator))
        except EnclaveCcError as error:
            return problem_answer(error, self.log, request.path)

    def _render_metrics(self, _: Call) -> HttpAnswer:
        return HttpAnswer(body=self.metrics.render().encode(), content_type=CONTENT_TYPE)

    def _explain_unknown(self, request: HttpRequest) -> PathUnknown:
        if self.table.methods(request.path):
            return PathUnknown("InvalidRequestPath", "this path does not know this method", status=405)
        if not request.path.startswith(f"{messages.PREFIX}/"):
            return PathUnknown("InvalidRequestPath", "there is nothing at this path")
        head = request.path.removeprefix(f"{messages.PREFIX}/").split("/")[0]
        if head == "admin":  # what there is for administrators is for them to know
            self.authorize(request)
        known = {route.path.removeprefix(f"{messages.PREFIX}/").split("/")[0] for route in self.table.routes}
        if head in known:
            return PathUnknown("InvalidRequestPath", "there is nothing at this path")
        return PathUnknown("PluginNotFound", "there is no such plugin")
