"""`forebay certs` and `forebay token`: what they print, keep and refuse."""

import os
import re
import stat
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from forebay_command import Forebay
from parties import Parties, now

from forebay.cacheruntime.cluster.certs import KEY, Identity, Role
from forebay.cacheruntime.cluster.security import Security
from forebay.cacheruntime.cluster.tokens import Authorizer, Verb
from forebay.cacheruntime.errors import AccessDenied
from forebay.cli.main import run

pytestmark = pytest.mark.slow


@pytest.mark.semantics("K5")
def test_from_an_authority_to_a_token_that_is_taken(forebay: Forebay, tmp_path: Path) -> None:
    ca, node = tmp_path / "ca", tmp_path / "node"
    old = os.umask(0)
    try:
        said = forebay.run("certs", "init", ca).out
        assert said.startswith(f"{ca} is an authority; ca.key and tokens.key are secrets and stay there\n")
        said += forebay.run("certs", "issue", ca, "w1", "--worker", "--host", "10.0.0.1", "--days", "9").out
        said += forebay.run("certs", "issue", ca, "c1", "--client", "--out", node).out
        said += forebay.run(
            "token", "create", "--ca", ca, "--dataset", "imagenet", "--dataset", "team-*", "--verb", "read", "--verb",
            "list", "--ttl", "1h", "--client", "c1", "--out", node / "token",
        ).out  # fmt: skip
    finally:
        os.umask(old)
    for path in (*ca.rglob("*"), *node.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    worker, client = Security(ca / "w1"), Security(node)
    assert (str(worker.me), str(client.me)) == ("worker 'w1'", "client 'c1'")
    assert client.me is not None
    authorizer, token = Authorizer(ca / "w1"), client.token()
    for dataset in ("imagenet", "team-a"):
        for verb in (Verb.READ, Verb.LIST):
            authorizer.check(client.me, token, verb, dataset)
    with pytest.raises(AccessDenied, match="does not allow 'admin'"):
        authorizer.check(client.me, token, Verb.ADMIN, "imagenet")
    printed = forebay.run("token", "create", "--ca", ca, "--dataset", "a", "--verb", "warm").out
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", printed), "nothing but the token, for a pipe"
    authorizer.check(client.me, printed.strip(), Verb.WARM, "a")
    assert token is not None
    assert token not in said
    for secret in ((ca / "ca.key"), (ca / "tokens.key"), (node / KEY)):
        assert secret.read_text().splitlines()[1] not in said


@pytest.mark.semantics("K5")
def test_nothing_is_replaced_unless_it_is_said(forebay: Forebay, tmp_path: Path) -> None:
    ca = Parties.create(tmp_path / "ca").folder
    out = tmp_path / "token"
    out.write_text("mine")
    create = ("token", "create", "--ca", ca, "--dataset", "a", "--verb", "read", "--out", out)
    before = {path: path.read_bytes() for path in ca.iterdir()}
    for command in (("certs", "init", ca), create):
        assert "exists already; --force replaces it" in forebay.run(*command, code=2).err
    assert {path: path.read_bytes() for path in ca.iterdir()} == before
    assert out.read_text() == "mine"
    for command in (("certs", "init", ca), create):
        forebay.run(*command, "--force")
    assert not [path for path, content in before.items() if path.read_bytes() == content]
    Authorizer(ca).check(Identity(Role.CLIENT, "c", 2.0**40), out.read_text().strip(), Verb.READ, "a")


def test_tokens_for_who_has_an_authority(forebay: Forebay, tmp_path: Path) -> None:
    assert "goes into the bundle of each worker" in forebay.run("token", "init", tmp_path / "tokens").out
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == ["tokens.key", "tokens.pub"]
    assert "say one of them" in forebay.run("token", "init", tmp_path, "--rotate", "--force", code=2).err


def test_show_tells_what_is_there_and_what_is_wrong(forebay: Forebay, tmp_path: Path) -> None:
    parties = Parties.create(tmp_path / "ca")
    worker = parties.issue("w")
    out = forebay.run("certs", "show", worker).out
    assert "worker 'w'" in out
    assert "worker.forebay.internal" in out
    ca, mine = forebay.run("certs", "show", worker, "--json").json()
    assert (ca["party"], mine["party"], mine["days_left"], mine["trouble"]) == ("authority", "worker 'w'", 29, "")
    assert mine["ends"].endswith("+00:00")
    parties.issue("w", at=now() - timedelta(days=60))
    assert forebay.run("certs", "show", worker, "--json", code=1).json()[1]["trouble"] == "expired"
    assert "has neither ca.crt nor tls.crt" in forebay.run("certs", "show", tmp_path, code=2).err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("certs", "issue", "{ca}", "w"), "say who it is for: --worker or --client"),
        (("certs", "issue", "{ca}", "w", "--worker", "--client"), "say who it is for: --worker or --client"),
        (("certs", "issue", "{ca}", "a/b", "--worker"), "name 'a/b' is not 1 to 63 letters"),
        (
            ("certs", "issue", "{ca}", "w", "--worker", "--host", "a b"),
            "--host 'a b' is neither a DNS name nor an address",
        ),
        (("certs", "issue", "{ca}/none", "w", "--worker"), "is no authority: no ca.key there"),
        (("token", "create", "--ca", "{ca}", "--dataset", "a", "--verb", "write"), "one of read, list, warm, admin"),
        (("token", "create", "--ca", "{ca}", "--dataset", "a", "--verb", "read", "--ttl", "x"), "time 'x' is not"),
        (("token", "create", "--ca", "/", "--dataset", "a", "--verb", "read"), "has no tokens.key"),
        (("token", "create", "--ca", "{ca}", "--verb", "read"), "--dataset"),
    ],
)
def test_wrong_usage_is_one_line(
    tmp_path: Path,
    words: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parties = Parties.create(tmp_path / "ca")
    monkeypatch.setattr(sys, "argv", ["forebay", *(word.format(ca=parties.folder) for word in words)])
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
