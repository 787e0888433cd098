"""The owner's page in a real browser, Debian's Chromium: what it shows, and what it lets nobody do."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import sqlite3
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, expect, sync_playwright

from enclave_cc.errors import PeerError
from enclave_cc.owner.page.sessions import COOKIE
from enclave_cc.simulator.platform import Platform as SimulatedMachine

from .conftest import EnclavePlatform, Kbs, make_identity

CHROMIUM = "/usr/bin/chromium"
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
QUIET += ("--disable-component-update", "--disable-sync")
CANARY = "CANARY-of-a-resource-0123456789"
ATTACK = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET)) as launched:
            yield launched


@pytest.fixture(scope="module")
def filled(kbs: Kbs, enclave: EnclavePlatform, machine: SimulatedMachine) -> Kbs:
    """The KBS with something to look at: keys, releases, denials of three kinds, a draft, hostile texts."""
    admin = kbs.admin
    for path in ("team-a/key/one", "team-b/credential/registry"):
        admin.set_resource(path, CANARY.encode(), tags={"note": ATTACK[:60]} if path.startswith("team-a") else None)
    assert kbs.client(enclave).get("kbs:///team-a/key/one") == CANARY.encode()
    kbs.client(enclave).get("kbs:///team-b/credential/registry")
    for members in ({"mr_enclave": b"\x9a" * 32}, {"debug": True}):
        with pytest.raises(PeerError):
            kbs.client(EnclavePlatform(machine, make_identity(**members))).get("kbs:///team-a/key/one")  # type: ignore[arg-type]
    draft = kbs.directory.parent / "draft.rego"
    text = admin.get_policy("release")["text"]
    draft.write_text(
        text.replace("\tcount(input.submods) > 0\n", '\tcount(input.submods) > 0\n\tdata["resource-path"][0] != "team-b"\n')
    )
    kbs.cli("policy", "set", "release", str(draft), "--draft", "--note", ATTACK)
    return kbs


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """Every violation of the content policy, and every script error, fails the test."""
    complaints: list[str] = []
    made = browser.new_context(ignore_https_errors=True, viewport={"width": 1280, "height": 900})
    made.on("weberror", lambda error: complaints.append(str(error.error)))
    made.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    yield made
    made.close()
    harmless = ("status of 401", _OTHERS)  # asked to enter again
    assert [text for text in complaints if not any(each in text for each in harmless)] == []


# Chromium gives its requests up when an interface comes or goes: other tests beside this one make pods.
_OTHERS = "ERR_NETWORK_CHANGED"


def visit(page: Page, url: str) -> None:
    for left in reversed(range(5)):
        try:
            page.goto(url)
        except Error as error:
            if _OTHERS not in str(error) or not left:
                raise
        else:
            return


@pytest.fixture
def page(context: BrowserContext, filled: Kbs) -> Page:
    opened = context.new_page()
    visit(opened, filled.cli("kbs", "page").stdout.strip())
    opened.wait_for_url("**/page/overview")
    return opened


def test_the_link_enters_and_leaves_no_token_behind(page: Page) -> None:
    assert "#" not in page.url
    assert "ey" not in page.evaluate("location.hash + document.referrer")
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    expect(page.get_by_text("This KBS trusts a simulated platform")).to_be_visible()
    page.get_by_role("button", name="Leave").click()
    visit(page, page.url.replace("/enter", "/overview"))
    expect(page.get_by_label("Admin token")).to_be_visible()


def test_attestations_appear_without_a_reload(page: Page, filled: Kbs, enclave: EnclavePlatform) -> None:
    before = page.locator("tbody tr").count()
    page.evaluate("window.loaded = true")
    filled.client(enclave).get("kbs:///team-a/key/one")
    expect(page.locator("tbody tr")).to_have_count(before + 2, timeout=15_000)
    expect(page.locator("tbody tr.new").first).to_contain_text("team-a/key/one")
    assert page.evaluate("window.loaded")


def test_a_denial_shows_its_reasons(page: Page) -> None:
    page.get_by_role("link", name="Decisions", exact=True).click()
    page.get_by_role("link", name="denied", exact=True).click()
    page.locator("tr", has_text="measurement-unknown").get_by_role("link", name="why").first.click()
    tree = page.locator(".tree").first
    expect(tree).to_contain_text("sgx.body.mr_enclave")
    expect(tree).to_contain_text("9a" * 32)
    expect(tree).to_contain_text("enclave-cc refvals add")
    tree.get_by_role("link", name=re.compile("line")).first.click()  # to the rule in the policy's text
    expect(page.locator("tr:target")).to_be_visible()


def test_resources_are_names_only(page: Page) -> None:
    page.get_by_role("link", name="Resources", exact=True).click()
    expect(page.get_by_text("team-b/credential/registry")).to_be_visible()
    page.get_by_label("Path begins with").fill("team-a/")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_text("team-a/key/one")).to_be_visible()
    expect(page.get_by_text("team-b/credential/registry")).to_have_count(0)
    assert CANARY not in page.content()


def test_texts_of_others_are_texts(page: Page) -> None:
    for view in ("policy?id=resource-policy", "resources", "references", "audit"):
        visit(page, page.url.rsplit("/page/", 1)[0] + f"/page/{view}")
        assert page.locator("img[src='x'], main script").count() == 0
        assert page.title() != "owned"
    visit(page, page.url.rsplit("/page/", 1)[0] + "/page/policy?id=resource-policy")
    expect(page.get_by_text("<img src=x").first).to_be_visible()


def test_a_draft_is_compared_replayed_and_activated(page: Page, filled: Kbs) -> None:
    page.get_by_role("link", name="Policies", exact=True).click()
    page.locator("tr", has_text="resource-policy").get_by_role("link", name="open").click()
    expect(page.locator("tr.added")).to_contain_text("team-b")
    expect(page.locator("tr.removed")).to_have_count(0)
    page.get_by_role("button", name="Replay").click()
    change = page.locator(".change", has_text="team-b/credential/registry")
    expect(change).to_contain_text("allow → deny")
    expect(change).to_contain_text("resource-policy as given")
    expect(page.locator(".change", has_text="team-a/key/one")).to_have_count(0)
    assert filled.admin.get_policy("release")["version"] == 1  # nothing was activated
    page.get_by_role("link", name="Back to the policy").click()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name=re.compile("Activate")).click()
    expect(page.locator("h1 .good")).to_have_text("active")
    assert filled.admin.get_policy("release")["version"] == 2
    kinds = [each["entry"]["kind"] for each in audit_entries(filled)]
    assert "policy-activated" in kinds
    filled.admin.activate_policies({"resource-policy": 1})


def test_the_audit_log_s_state(page: Page, filled: Kbs) -> None:
    page.get_by_role("link", name="Audit log", exact=True).click()
    shown = page.locator("dl").first
    expect(shown).to_contain_text(str(len(audit_entries(filled))))
    expect(page.locator("tbody tr", has_text="release").first).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420])
def test_nothing_overflows(browser: Browser, filled: Kbs, scheme: str, width: int) -> None:
    context = browser.new_context(
        ignore_https_errors=True,
        color_scheme=scheme,
        viewport={"width": width, "height": 800},  # type: ignore[arg-type]
    )
    page = context.new_page()
    visit(page, filled.cli("kbs", "page").stdout.strip())
    page.wait_for_url("**/page/overview")
    for view in ("overview", "resources", "policies", "policy?id=resource-policy", "references", "audit"):
        visit(page, page.url.rsplit("/page/", 1)[0] + f"/page/{view}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
    context.close()


def test_refreshing_reads_decisions_only(filled: Kbs, enclave: EnclavePlatform) -> None:
    """What the overview shows beside them is not asked again: the log's state would be a new signed checkpoint each time."""
    visitor = Visitor(filled)
    assert visitor.enter(filled.admin.make_token()) == 303
    with contextlib.closing(sqlite3.connect(f"file:{filled.directory}/kbs.db?mode=ro", uri=True)) as database:

        def count() -> int:
            return int(database.execute("SELECT count(*) FROM audit_checkpoint").fetchone()[0])

        before = count()
        for view in ("overview", "decisions", "overview", "overview"):
            filled.client(enclave).get("kbs:///team-a/key/one")
            status, _, text = visitor.ask("GET", f"/page/{view}?rows=1")
            assert status == 200 and text.count("team-a/key/one") and "<html" not in text
        assert count() - before <= 1  # one may have been due by the clock
        assert visitor.ask("GET", "/page/overview")[0] == 200
        assert count() > before


# --- without a browser: what a page of somebody else's, or a stolen half of a session, could try


class Visitor:
    """A client that sends what it is told to."""

    def __init__(self, kbs: Kbs) -> None:
        self._host = urlsplit(kbs.url).netloc
        self._context = ssl.create_default_context(cadata=kbs.certificate)
        self.cookie = ""

    def ask(self, method: str, path: str, form: dict[str, str] | None = None) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPSConnection(self._host, context=self._context, timeout=20)
        headers = {"Cookie": f"{COOKIE}={self.cookie}"} if self.cookie else {}
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection.request(method, path, None if form is None else urlencode(form), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text

    def enter(self, token: str) -> int:
        status, headers, _ = self.ask("POST", "/page/enter", {"token": token})
        self.cookie = headers.get("set-cookie", "").removeprefix(f"{COOKIE}=").split(";")[0]
        return status

    def form_key(self) -> str:
        found = re.search(r'name="form_key" value="([0-9a-f]{64})"', self.ask("GET", "/page/overview")[2])
        assert found is not None
        return found[1]


@pytest.fixture
def visitor(filled: Kbs) -> Visitor:
    made = Visitor(filled)
    assert made.enter(filled.admin.make_token()) == 303
    return made


def test_headers(visitor: Visitor) -> None:
    for path in ("/page/overview", "/page/enter", "/page/static/page.js"):
        status, headers, _ = visitor.ask("GET", path)
        assert status == 200
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert headers["x-frame-options"] == "DENY" and headers["referrer-policy"] == "no-referrer"
    assert visitor.ask("GET", "/page/overview")[1]["cache-control"] == "no-store"


def test_the_cookie_is_for_this_origin_s_own_pages(filled: Kbs) -> None:
    _, headers, _ = Visitor(filled).ask("POST", "/page/enter", {"token": filled.admin.make_token()})
    words = headers["set-cookie"]
    assert words.startswith("__Host-") and all(each in words for each in ("Secure", "HttpOnly", "SameSite=Strict", "Path=/"))


def test_nobody_enters_without_a_token(filled: Kbs) -> None:
    stranger = Visitor(filled)
    for token in ("", "x", "a.b.c", "eyJhbGciOiJub25lIn0.eyJyb2xlIjoiYWRtaW4ifQ."):
        assert stranger.enter(token) == 401
        assert not stranger.cookie
    for view in ("overview", "decisions", "resources", "policies", "audit", "policy?id=resource-policy", "decision?id=00"):
        status, _, text = stranger.ask("GET", f"/page/{view}")
        assert status == 401 and "Admin token" in text and "team-a" not in text
    assert stranger.ask("POST", "/page/policy/activate", {"id": "resource-policy", "version": "2"})[0] == 401


def test_a_changed_cookie_is_nobody_s(visitor: Visitor) -> None:
    whole = visitor.cookie
    for position in range(0, len(whole), 7):
        visitor.cookie = whole[:position] + ("A" if whole[position] != "A" else "B") + whole[position + 1 :]
        assert visitor.ask("GET", "/page/overview")[0] == 401
    for visitor.cookie in (whole[:-1], whole + "A", "A", "=" * 40, whole * 40):
        assert visitor.ask("GET", "/page/overview")[0] == 401


def test_a_form_needs_the_key_of_its_session(visitor: Visitor, filled: Kbs) -> None:
    other = Visitor(filled)
    other.enter(filled.admin.make_token())
    form = {"id": "resource-policy", "version": "2"}
    for key in ({}, {"form_key": ""}, {"form_key": "0" * 64}, {"form_key": other.form_key()}, {"form_key": "\xff"}):
        for path in ("/page/policy/activate", "/page/policy/replay", "/page/leave"):
            assert visitor.ask("POST", path, {**form, **key})[0] == 403
    assert filled.admin.get_policy("release")["version"] == 1
    assert visitor.ask("GET", "/page/policy/activate")[0] in (404, 405)  # no change by a link


def test_wrong_forms_are_pages_with_a_code(visitor: Visitor) -> None:
    key = {"form_key": visitor.form_key()}
    for form, status in (
        ({"id": "resource-policy", "version": "x"}, 400),
        ({"id": "resource-policy", "version": "999"}, 404),
        ({"id": "../../resources", "version": "1"}, 404),
        ({"id": "a?b", "version": "1"}, 400),
        ({"version": "1"}, 400),
    ):
        for action in ("activate", "replay"):
            found, headers, text = visitor.ask("POST", f"/page/policy/{action}", {**form, **key})
            assert found == status, (form, action, text)
            assert headers["content-type"].startswith("text/html")
    assert visitor.ask("GET", "/page/policy?id=none")[0] == 404
    for number in ("9" * 5000, "x", "-1", "\u0661"):
        for name in ("version", "against"):
            assert visitor.ask("GET", "/page/policy?" + urlencode({"id": "resource-policy", name: number}))[0] == 400
    assert visitor.ask("GET", "/page/decision?id=%3Cscript%3E")[0] == 400
    assert visitor.ask("GET", "/page/static/..%2fpaths.py")[0] == 404


def test_a_role_sees_what_it_may(
    tmp_path: Path, machine: SimulatedMachine, new_kbs: Callable[[Path, SimulatedMachine], Kbs]
) -> None:
    kbs = new_kbs(tmp_path, machine)
    configuration = kbs.directory / "kbs.toml"
    kbs.stop()
    configuration.write_text(configuration.read_text() + '\n[admin.roles.team-a]\nresources = ["team-a/"]\nactions = ["list"]\n')
    kbs.start()
    try:
        for path in ("team-a/key/one", "team-b/key/one"):
            kbs.admin.set_resource(path, CANARY.encode())
        owner = kbs.directory / "owner.toml"
        owner.write_text(owner.read_text().replace('role = "admin"', 'role = "team-a"'))
        guest = Visitor(kbs)
        assert guest.enter(kbs.admin.make_token()) == 303
        status, _, text = guest.ask("GET", "/page/resources")
        assert status == 200 and "team-a/key/one" in text and "team-b" not in text
        for view in ("overview", "decisions", "policies", "references", "audit", "policy?id=resource-policy"):
            status, _, text = guest.ask("GET", f"/page/{view}")
            assert status == 403 and "team-b" not in text
            assert "Leave" not in text or "/page/policies" not in text
    finally:
        assert kbs.stop() == 0


def audit_entries(kbs: Kbs) -> list[dict[str, dict[str, object]]]:
    done = kbs.cli("kbs", "audit", "export", "--all")
    return [line for line in map(json.loads, done.stdout.splitlines()) if "entry" in line]
