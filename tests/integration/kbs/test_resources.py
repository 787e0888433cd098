"""Resources through a whole KBS: the admin API and the command line, other back-ends, and a change of the store key."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from enclave_cc.crypto.jws import SigningKey
from enclave_cc.errors import EnclaveCcError
from enclave_cc.owner.kbs.client import AdminClient

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "suites"))

import softhsm
from openbao import OpenBao

CANARY = "CANARY-" + os.urandom(12).hex()
ENCLAVE_CC = str(Path(sys.executable).parent / "enclave-cc")


def refused(act: Any) -> EnclaveCcError:
    with pytest.raises(EnclaveCcError) as caught:
        act()
    return caught.value


@pytest.fixture
def own_kbs(tmp_path: Path, machine: Any, new_kbs: Any) -> Iterator[Any]:
    kbs = new_kbs(tmp_path, machine)
    yield kbs
    for client in kbs.clients:
        client.close()
    if kbs.process.poll() is None:
        kbs.stop()


def configure(kbs: Any, text: str) -> None:
    """In place of the tables [resources] and [resources.key]."""
    path = kbs.directory / "kbs.toml"
    before, _, rest = path.read_text().partition("[resources")
    path.write_text(f"{before}{text}\n{rest[rest.index('[admin]') :]}")


# the admin API and the command line


def test_tags_versions_and_history_by_command_line(kbs: Any, tmp_path: Path) -> None:
    made = kbs.cli("resource", "set", "cli/tags/a", "-", "--tag", "team=red", "--tag", "stage=a=b", "--json", text="one")
    assert json.loads(made.stdout) == {"path": "cli/tags/a", "version": 1}
    kbs.cli("resource", "set", "cli/tags/a", "-", text="two")
    kbs.cli("resource", "set", "cli/tags/b", "-", text="three")
    changed = json.loads(kbs.cli("resource", "tag", "cli/tags/a", "stage-", "live=", "team=blue", "--json").stdout)
    assert (changed["version"], changed["tags"]) == (2, {"live": "", "team": "blue"})
    rows = json.loads(kbs.cli("resource", "ls", "--tag", "team=blue", "--tag", "live", "--json").stdout)
    assert [(row["path"], row["author"]) for row in rows] == [("cli/tags/a", "admin")]
    assert "live=,team=blue" in kbs.cli("resource", "ls", "cli/tags/").stdout
    assert json.loads(kbs.cli("resource", "ls", "--tag", "team=red", "--json").stdout) == []
    assert kbs.cli("resource", "get", "cli/tags/a", "--version", "1").stdout == "one"
    shown = json.loads(kbs.cli("resource", "get", "cli/tags/a", "--json").stdout)
    assert shown == {"path": "cli/tags/a", "version": 2, "value": base64.b64encode(b"two").decode()}
    kbs.cli("resource", "rm", "cli/tags/a")
    history = json.loads(kbs.cli("resource", "history", "cli/tags/a", "--json").stdout)
    assert [(each["version"], each["size"], each["author"], each["removed_by"]) for each in history] == [
        (2, 3, "admin", "admin"),
        (1, 3, "admin", "admin"),
    ]
    assert "REMOVED BY" in kbs.cli("resource", "history", "cli/tags/a").stdout
    for words, code in (
        (("resource", "get", "cli/tags/b", "--version", "2"), 3),
        (("resource", "get", "cli/tags/b", "--version", "-1"), 2),
        (("resource", "tag", "cli/tags/a", "a=b"), 3),
        (("resource", "tag", "cli/tags/b", "ab"), 2),
        (("resource", "tag", "cli/tags/b", "a b=c"), 2),
        (("resource", "history", "cli/tags/none"), 3),
        (("resource", "set", "cli/tags/b", "-", "--tag", "x"), 2),
        (("resource", "set", "cli/tags/b", "-", "--tag", "\n=x"), 2),
    ):
        assert kbs.cli(*words, check=False).returncode == code, words


def test_import_from_local_fs(kbs: Any, tmp_path: Path) -> None:
    """The layout of Trustee's LocalFs back-end; run twice, nothing is set twice."""
    for name in ("imported/key/1", "imported/cert/x.pem"):
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(name)
    done = json.loads(kbs.cli("resource", "import", str(tmp_path / "fs"), "--dry-run", "--json").stdout)
    assert [(row["path"], row["version"]) for row in done] == [("imported/cert/x.pem", None), ("imported/key/1", None)]
    assert json.loads(kbs.cli("resource", "ls", "imported/", "--json").stdout) == []
    for version in (1, None):
        done = json.loads(kbs.cli("resource", "import", str(tmp_path / "fs"), "--json").stdout)
        assert [row["version"] for row in done] == [version, version]
    assert kbs.cli("resource", "get", "imported/key/1").stdout == "imported/key/1"
    (tmp_path / "fs/imported/key/2").symlink_to("/etc/passwd")
    assert kbs.cli("resource", "import", str(tmp_path / "fs"), check=False).returncode == 2
    assert kbs.cli("resource", "import", str(tmp_path / "none"), check=False).returncode == 3


def test_pages(kbs: Any) -> None:
    for number in range(5):
        kbs.admin.set_resource(f"paged/key/{number}", b"1", tags={"odd": str(number % 2)})
    admin = kbs.admin
    seen, after = [], ""
    while True:
        page = json.loads(admin._request("GET", f"admin/resources?prefix=paged/&limit=2&after={after}").body)
        seen.append([row["path"] for row in page["items"]])
        if "next" not in page:
            break
        after = page["next"]
    assert seen == [["paged/key/0", "paged/key/1"], ["paged/key/2", "paged/key/3"], ["paged/key/4"]]
    assert [row["path"] for row in admin.list_resources("paged/", tags={"odd": "1"})] == ["paged/key/1", "paged/key/3"]
    for query, code in (
        ("limit=0", "malformed"),
        ("limit=1001", "malformed"),
        ("limit=x", "malformed"),
        ("limit=9999999999999999999", "malformed"),
        ("tags=x", "malformed"),
        ("tags=[]", "malformed"),
        ("tags=%7B%22a%22:1%7D", "malformed"),
        ("tags=" + "[" * 5000, "malformed"),
        ("after=%00", "usage"),
        ("after=%27%20OR%201=1", "usage"),
    ):
        assert refused(lambda query=query: admin._request("GET", f"admin/resources?{query}")).code == code, query
    for prefix in ("%00", "%27%20OR%201=1%20--", "..%2f", "%25"):
        assert json.loads(admin._request("GET", f"admin/resources?prefix={prefix}").body)["items"] == []


def test_a_scoped_administrator_sees_pages_of_their_own(own_kbs: Any) -> None:
    key = SigningKey.from_pem((own_kbs.directory / "admin.key").read_bytes())
    path = own_kbs.directory / "kbs.toml"
    role = '\n[admin.roles.team]\nresources = ["team-a/keys/", "team-b/", "shared/key/one"]\nactions = ["list", "read", "write"]\n'
    path.write_text(path.read_text() + role)
    own_kbs.stop()
    own_kbs.start()
    names = ["team-a/certs/x", "team-a/keys/1", "team-a/keys/2", "team-a/keysx/1", "team-b/keys/1", "team-c/keys/1"]
    names += ["shared/key/one", "shared/key/one-more"]
    for name in names:
        own_kbs.admin.set_resource(name, b"1")
    team = AdminClient(own_kbs.url, certificate_pem=own_kbs.certificate, key=key, role="team")
    mine = ["team-a/keys/1", "team-a/keys/2", "team-b/keys/1"]
    assert [row["path"] for row in team.list_resources()] == ["shared/key/one", *mine]
    assert [row["path"] for row in team.list_resources("shared/")] == ["shared/key/one"]
    assert team.list_resources("shared/key/one-") == []
    assert [row["path"] for row in team.list_resources("team-a/")] == mine[:2]
    assert team.list_resources("team-a/certs/") == []
    page = json.loads(team._request("GET", "admin/resources?limit=3").body)
    assert [row["path"] for row in page["items"]] == ["shared/key/one", *mine[:2]]
    assert [row["path"] for row in json.loads(team._request("GET", f"admin/resources?after={page['next']}").body)["items"]] == mine[
        2:
    ]
    assert team.tag_resource("team-b/keys/1", {"a": "b"})["tags"] == {"a": "b"}
    assert team.list_versions("team-a/keys/1")[0]["version"] == 1
    for act in (
        lambda: team.tag_resource("team-c/keys/1", {"a": "b"}),
        lambda: team.list_versions("team-a/certs/x"),
        lambda: team.get_resource("team-c/keys/1"),
        lambda: team.get_resource("shared/key/one-more"),
    ):
        assert refused(act).code == "forbidden"


def test_who_changed_it_is_the_subject_of_the_token(kbs: Any) -> None:
    key = (kbs.directory / "admin.key").read_bytes()
    claims = {"sub": "alice\n\u202eevil", "role": "admin", "exp": int(time.time()) + 60}
    token = jwt.encode(claims, key, algorithm="EdDSA")
    response = kbs.admin._http.request("POST", "/kbs/v0/resource/who/did/it", b"1", {"Authorization": f"Bearer {token}"})
    assert (response.status, response.header("resource-version")) == (200, "1")
    author = kbs.admin.list_versions("who/did/it")[0]["author"]
    assert author.startswith("alice") and author.isprintable()


# other back-ends


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    server = OpenBao(tmp_path_factory.mktemp("bao") / "server")
    server.mount("secret", 2)
    yield server
    server.stop()


def test_keys_reach_enclaves_from_every_back_end(own_kbs: Any, enclave: Any, bao: OpenBao, tmp_path: Path) -> None:
    """Database, files, Vault and a token under one KBS: set by command, released to an enclave; nothing is in the wrong place,
    and a Vault that is down takes only its own paths with it."""
    softhsm.make_token("kbs-values")
    (own_kbs.directory / "pin").write_text(softhsm.PIN)
    (own_kbs.directory / "vault-token").write_text(bao.root_token)
    (own_kbs.directory / "vault.pem").write_text(bao.ca_pem)
    configure(
        own_kbs,
        f"""
[resources]
backend = "database"
[resources.backends.disk]
kind = "files"
directory = "values"
[resources.backends.vault]
kind = "vault"
address = "{bao.address}"
ca = "vault.pem"
mount = "secret"
token_file = "vault-token"
deadline = 2
[resources.backends.hsm]
kind = "pkcs11"
module = "{softhsm.MODULE}"
token = "kbs-values"
pin_file = "pin"
[resources.mounts.disk]
backend = "disk"
[resources.mounts."team/keys"]
backend = "vault"
[resources.mounts."team/keys/root"]
backend = "hsm"
""",
    )
    own_kbs.stop()
    own_kbs.start()
    paths = ["default/key/1", "disk/key/1", "team/certs/1", "team/keys/1", "team/keys/root"]
    for path in paths:
        own_kbs.cli("resource", "set", path, "-", "--tag", "from=test", text=CANARY + path)
    client = own_kbs.client(enclave)
    for path in paths:
        assert client.get(f"kbs:///{path}") == (CANARY + path).encode()
        assert own_kbs.cli("resource", "get", path).stdout == CANARY + path
    rows = json.loads(own_kbs.cli("resource", "ls", "--tag", "from=test", "--json").stdout)
    assert [row["path"] for row in rows] == paths
    value = base64.b64decode(bao.send("GET", "secret/data/enclave-cc/team/keys/1").data["data"]["value"])
    assert value.decode() == CANARY + "team/keys/1"
    assert (own_kbs.directory / "values/disk/key/1/1").exists()
    bao.seal()
    try:
        error = refused(lambda: client.get("kbs:///team/keys/1"))
        assert "sealed" not in str(error)  # the client learns that there is trouble, the owner which
        assert own_kbs.cli("resource", "get", "team/keys/1", check=False).returncode != 0
        assert any(event["code"] == "store-sealed" for event in own_kbs.events("fault"))
        assert client.get("kbs:///default/key/1") == (CANARY + "default/key/1").encode()
        assert json.loads(own_kbs.cli("resource", "ls", "disk/", "--json").stdout)[0]["path"] == "disk/key/1"
    finally:
        bao.unseal()
    assert client.get("kbs:///team/keys/1") == (CANARY + "team/keys/1").encode()
    shown = own_kbs.log.read_text()
    assert not any(secret in shown for secret in (CANARY, bao.root_token, softhsm.PIN))
    for path in own_kbs.directory.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('[resources]\nbackend = "nowhere"\n', "bad-config"),
        ("[resources]\nmax_value = 0\n", "bad-config"),
        ("[resources]\nmax_values = 5\n", "bad-config"),
        ('[resources.key]\nsource = "paper"\n', "bad-config"),
        ('[resources.key]\nsource = "pkcs11"\n', "bad-config"),
        ('[resources.key]\nfile = "absent"\n', "not-found"),
        ('[resources.key]\nsource = "environment"\nvariable = "NOT_SET_AT_ALL"\n', "not-found"),
        ('[resources.backends.x]\nkind = "s3"\n', "bad-config"),
        ('[resources.backends.database]\nkind = "files"\ndirectory = "x"\n', "bad-config"),
        ('[resources.backends.x]\nkind = "files"\n', "bad-config"),
        ('[resources.backends.x]\nkind = "vault"\naddress = "https://a"\nmount = "m"\n', "bad-config"),
        ('[resources.backends.x]\nkind = "vault"\naddress = "https://a"\nmount = "m"\nrole_id_file = "r"\n', "bad-config"),
        (
            '[resources.backends.x]\nkind = "vault"\naddress = "https://a"\nmount = "m"\ntoken_file = "t"\ntoken_variable = "T"\n',
            "bad-config",
        ),
        ('[resources.backends.x]\nkind = "vault"\naddress = "http://a"\nmount = "m"\ntoken_file = "t"\n', "bad-config"),
        ('[resources.backends.x]\nkind = "vault"\naddress = "https://a"\nmount = "m"\ntoken_file = "t"\nca = "no"\n', "bad-config"),
        (
            '[resources.backends.x]\nkind = "vault"\naddress = "https://a"\nmount = "m"\ntoken_file = "t"\nversion = 3\n',
            "bad-config",
        ),
        ('[resources.backends.x]\nkind = "pkcs11"\nmodule = "/no.so"\ntoken = "t"\npin_file = "p"\n', "not-found"),
        ('[resources.backends.x]\nkind = "pkcs11"\nmodule = "/no.so"\ntoken = "t"\n', "bad-config"),
        ('[resources.mounts."a/../b"]\nbackend = "database"\n', "bad-config"),
        ('[resources.mounts.a]\nbackend = "nowhere"\n', "bad-config"),
        ("[resources.mounts.a]\n", "bad-config"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, kbs: Any, text: str, code: str) -> None:
    """At start, with the setting's name, before anything is served."""
    directory = tmp_path / "kbs"
    subprocess.run(["cp", "-r", kbs.directory, directory], check=True)
    copy = type(kbs)(directory, tmp_path / "log")
    configure(copy, text)
    done = subprocess.run(
        [ENCLAVE_CC, "kbs", "serve", "--dir", directory, "--listen", "127.0.0.1:0"], capture_output=True, text=True, timeout=60
    )
    assert done.stderr.startswith(f"error {code}: "), done.stderr
    assert done.returncode in (2, 3)


# the store key


def test_rekey_beside_a_serving_kbs(own_kbs: Any, enclave: Any) -> None:
    """While enclaves ask and an owner sets: nobody notices. The old key then opens nothing."""
    admin, client = own_kbs.admin, own_kbs.client(enclave)
    for number in range(10):
        admin.set_resource(f"re/key/{number}", str(number).encode())
    faults: list[BaseException] = []
    stop = threading.Event()

    def ask() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                assert client.get(f"kbs:///re/key/{number % 10}") == str(number % 10).encode()
                admin.set_resource(f"re/new/{number % 10}", str(number).encode())
            except BaseException as error:
                faults.append(error)
                return

    thread = threading.Thread(target=ask)
    thread.start()
    old = (own_kbs.directory / "store.key").read_text()
    assert json.loads(own_kbs.cli("kbs", "rekey", "--prepare", "--json").stdout)["resealed"] == 0
    done = json.loads(own_kbs.cli("kbs", "rekey", "--json").stdout)
    assert done["resealed"] >= 10
    assert len(done["key_ids"]) == 2
    finished = json.loads(own_kbs.cli("kbs", "rekey", "--finish", "--json").stdout)
    assert finished["key_ids"] == done["key_ids"][:1]
    time.sleep(0.3)
    stop.set()
    thread.join()
    assert faults == []
    assert old.strip() not in (own_kbs.directory / "store.key").read_text()
    own_kbs.stop()
    own_kbs.start()
    assert own_kbs.client(enclave).get("kbs:///re/key/3") == b"3"
    recorded = own_kbs.cli("audit", "verify", check=False)
    assert recorded.returncode == 0, recorded.stderr
    own_kbs.stop()
    (own_kbs.directory / "store.key").write_text(old)
    own_kbs.start()
    assert own_kbs.cli("resource", "get", "re/key/3", check=False).returncode != 0


def test_rekey_killed_and_run_again(own_kbs: Any) -> None:
    values = {f"re/key/{number}": os.urandom(20) for number in range(30)}
    for path, value in values.items():
        own_kbs.admin.set_resource(path, value)
    for delay in (0.25, 0.3, 0.35, 0.4, 0.5, 0.6):
        child = subprocess.Popen(
            [ENCLAVE_CC, "kbs", "rekey", "--dir", own_kbs.directory], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert {path: own_kbs.admin.get_resource(path) for path in values} == values
    own_kbs.cli("kbs", "rekey")
    assert len((own_kbs.directory / "store.key").read_text().split()) == 2
    own_kbs.cli("kbs", "rekey", "--finish")
    assert len((own_kbs.directory / "store.key").read_text().split()) == 1
    assert {path: own_kbs.admin.get_resource(path) for path in values} == values


def test_a_store_key_that_a_token_wraps(own_kbs: Any, enclave: Any) -> None:
    """From a plain file to a token and back, values all along; without the token or with another, nothing opens."""
    softhsm.make_token("kbs-key")
    pin = own_kbs.directory / "pin"
    pin.write_text(softhsm.PIN)
    own_kbs.admin.set_resource("hsm/key/1", CANARY.encode())
    token = f'module = "{softhsm.MODULE}"\ntoken = "kbs-key"\npin_file = "pin"\n'
    configure(own_kbs, f'[resources.key]\nsource = "pkcs11"\n{token}')
    own_kbs.stop()
    refused_start = subprocess.run([ENCLAVE_CC, "kbs", "serve", "--dir", own_kbs.directory], capture_output=True, text=True)
    assert refused_start.stderr.startswith("error wrong-state: ")
    assert "kbs rekey" in refused_start.stderr
    plain = (own_kbs.directory / "store.key").read_text()
    own_kbs.cli("kbs", "rekey")
    own_kbs.cli("kbs", "rekey", "--finish")
    wrapped = (own_kbs.directory / "store.key").read_text()
    assert wrapped.startswith("pkcs11:")
    assert plain.strip() not in wrapped
    own_kbs.start()
    assert own_kbs.client(enclave).get("kbs:///hsm/key/1") == CANARY.encode()
    own_kbs.stop()
    for change, code in ((lambda: pin.write_text("WRONG"), "store-denied"), (lambda: pin.unlink(), "store-denied")):
        change()
        done = subprocess.run([ENCLAVE_CC, "kbs", "serve", "--dir", own_kbs.directory], capture_output=True, text=True)
        assert done.stderr.startswith(f"error {code}: ")
        assert "WRONG" not in done.stderr
    pin.write_text(softhsm.PIN)
    for line, code in (
        ("pkcs11:" + base64.b64encode(bytes(60)).decode(), "store-denied"),  # not what the token wrapped
        (wrapped.strip()[:-8] + "AAAAAAA=", "store-denied"),
        ("pkcs11:", "store-denied"),
    ):
        (own_kbs.directory / "store.key").write_text(line + "\n")
        done = subprocess.run([ENCLAVE_CC, "kbs", "serve", "--dir", own_kbs.directory], capture_output=True, text=True)
        assert done.stderr.startswith(f"error {code}: "), done.stderr
    (own_kbs.directory / "store.key").write_text(wrapped)
    configure(own_kbs, f'[resources]\n[resources.key]\nsource = "file"\n{token}')
    own_kbs.cli("kbs", "rekey")
    own_kbs.cli("kbs", "rekey", "--finish")
    configure(own_kbs, "[resources]\n")
    assert not (own_kbs.directory / "store.key").read_text().startswith("pkcs11:")
    own_kbs.start()
    assert own_kbs.client(enclave).get("kbs:///hsm/key/1") == CANARY.encode()
    assert CANARY not in own_kbs.log.read_text()


def test_a_store_key_in_the_environment(own_kbs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    old = (own_kbs.directory / "store.key").read_text().strip()
    new = base64.b64encode(os.urandom(32)).decode()
    own_kbs.admin.set_resource("env/key/1", b"value")
    configure(own_kbs, '[resources.key]\nsource = "environment"\n')
    (own_kbs.directory / "store.key").unlink()
    own_kbs.stop()
    monkeypatch.setenv("ENCLAVE_CC_STORE_KEY", old)
    own_kbs.start()
    assert own_kbs.admin.get_resource("env/key/1") == b"value"
    assert own_kbs.cli("kbs", "rekey", check=False).returncode == 3
    monkeypatch.setenv("ENCLAVE_CC_STORE_KEY", f"{new},{old}")
    own_kbs.stop()
    own_kbs.start()
    own_kbs.cli("kbs", "rekey")
    assert "take the old key out" in own_kbs.cli("kbs", "rekey", "--finish").stdout
    monkeypatch.setenv("ENCLAVE_CC_STORE_KEY", new)
    own_kbs.stop()
    own_kbs.start()
    assert own_kbs.admin.get_resource("env/key/1") == b"value"
