"""The page's paths. Each view names the admin path whose content it shows; a role that does not cover that sees no view."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

from enclave_cc.errors import EnclaveCcError, PeerError, UsageError
from enclave_cc.owner.kbs.admin import AdminGate
from enclave_cc.owner.kbs.decisions import Log
from enclave_cc.owner.kbs.http import HttpAnswer
from enclave_cc.owner.kbs.routing import PUBLIC, Call, Route, Table
from enclave_cc.owner.page.api import AdminApi
from enclave_cc.owner.page.rendering import render, serve_static
from enclave_cc.owner.page.sessions import PageSession, PageSessions
from enclave_cc.owner.page.views import VIEWS, Action, View
from enclave_cc.record import record

PATH = "/page"
_MAX_FORM = 64 * 1024


@record
class Visitor:
    """Somebody with a session, and the API within what the role covers now."""

    session: PageSession
    api: AdminApi


class PagePaths:
    """Safe for many threads. `find_table` gives the KBS's routes, when they are there."""

    def __init__(self, gate: AdminGate, sessions: PageSessions, find_table: Callable[[], Table], log: Log) -> None:
        self._gate = gate
        self._sessions = sessions
        self._find_table = find_table
        self._log = log

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("GET", PATH, lambda _: _redirect(f"{PATH}/overview"), PUBLIC),
            Route("GET", f"{PATH}/static/{{name}}", self._serve_static, PUBLIC),
            Route("GET", f"{PATH}/enter", lambda _: render("enter", visitor=None, problem=None), PUBLIC),
            Route("POST", f"{PATH}/enter", self._guard(self._enter), PUBLIC),
            Route("POST", f"{PATH}/leave", self._guard(self._leave), PUBLIC),
            *(Route("GET", f"{PATH}/{view.name}", self._guard(self._show(view)), PUBLIC) for view in VIEWS),
            *(
                Route("POST", f"{PATH}/{view.name}/{action.name}", self._guard(self._act(view, action)), PUBLIC)
                for view in VIEWS
                for action in view.actions
            ),
        )

    def _guard(self, handler: Callable[[Call], HttpAnswer]) -> Callable[[Call], HttpAnswer]:
        """Errors as a page. Who has no session is asked to enter."""

        def answer(call: Call) -> HttpAnswer:
            try:
                return handler(call)
            except EnclaveCcError as error:
                if error.code == "unauthenticated":
                    return render("enter", status=401, visitor=None, problem=error if call.request.method == "POST" else None)
                known = isinstance(error, PeerError | UsageError)
                if not known:  # the KBS's own trouble, as the API logs it
                    self._log.write("fault", {"code": error.code, "what": error.what})
                return render("error", status=error.row.http, visitor=None, problem=error if known else None)

        return answer

    # entering and leaving

    def _enter(self, call: Call) -> HttpAnswer:
        """Exchanges an admin token for a session."""
        token = _parse_form(call.body).get("token", "").strip()
        try:
            who = self._gate.identify(token or None, certificate=call.request.certificate)
        except PeerError as error:
            self._log.write("refused", {"code": error.code, "what": error.what, "path": call.request.path})
            raise
        self._log.write("page-entered", {"subject": who.subject, "role": who.role, "provider": who.provider})
        headers = {"Set-Cookie": self._sessions.begin(who.subject, who.role, who.provider, who.key)}
        return _redirect(f"{PATH}/overview", headers)

    def _leave(self, call: Call) -> HttpAnswer:
        visitor = self._find_visitor(call)
        self._sessions.check_form(visitor.session, _parse_form(call.body).get("form_key"))
        return _redirect(f"{PATH}/enter", {"Set-Cookie": self._sessions.end()})

    def _find_visitor(self, call: Call) -> Visitor:
        """Raises `PeerError`: "unauthenticated", or "forbidden" for a role that is gone."""
        if call.request.page is None:
            raise PeerError("unauthenticated", "there is no session")
        session = self._sessions.read(call.request.page)
        named = (session.subject, session.role, session.provider, session.key)
        who = self._gate.resume(*named, certificate=call.request.certificate)
        return Visitor(session, AdminApi(self._find_table, who))

    # views

    def _show(self, view: View) -> Callable[[Call], HttpAnswer]:
        def show(call: Call) -> HttpAnswer:
            visitor = self._find_visitor(call)
            query = call.request.query
            if view.collect_rows is not None and "rows" in query:
                return self._render("rows", visitor, view, view.collect_rows(visitor.api, query))
            return self._render(view.template, visitor, view, view.collect(visitor.api, query))

        return show

    def _act(self, view: View, action: Action) -> Callable[[Call], HttpAnswer]:
        def act(call: Call) -> HttpAnswer:
            visitor, form = self._find_visitor(call), _parse_form(call.body)
            self._sessions.check_form(visitor.session, form.pop("form_key", None))
            done = action.carry_out(visitor.api, form)
            return _redirect(f"{PATH}/{done}") if isinstance(done, str) else self._render(action.template, visitor, view, done)

        return act

    def _render(self, template: str, visitor: Visitor, view: View, values: Mapping[str, Any]) -> HttpAnswer:
        shown = [each for each in VIEWS if each.title and visitor.api.covers(each.shows)]
        return render(template, visitor=visitor.session, views=shown, view=view, **values)

    @staticmethod
    def _serve_static(call: Call) -> HttpAnswer:
        answer = serve_static(call.parameters["name"])
        return answer if answer is not None else render("error", status=404, visitor=None, problem=None)


def _redirect(path: str, headers: Mapping[str, str] | None = None) -> HttpAnswer:
    """303: the browser goes on with GET, and a reload repeats no form."""
    return HttpAnswer(303, b"", "text/plain", {"Location": path, **(headers or {})})


def _parse_form(body: bytes) -> dict[str, str]:
    """Members of an `application/x-www-form-urlencoded` body. Raises `PeerError("malformed")`."""
    if len(body) > _MAX_FORM:
        raise PeerError("too-large", f"a form has at most {_MAX_FORM} bytes")
    try:
        pairs = urllib.parse.parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=64, errors="strict")
    except ValueError as error:
        raise PeerError("malformed", "the form cannot be read") from error
    form = dict(pairs)
    if len(form) != len(pairs):
        raise PeerError("malformed", "the form has a member twice")
    return form
