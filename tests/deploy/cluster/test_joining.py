"""A bare machine joins through the door of another, as two processes on one machine."""

import getpass
import hashlib
import json
import os
import socket
import ssl
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from deploy import store
from deploy.cell import Cell, CellError
from deploy.cli.joins import join_cluster
from deploy.cluster import authority, certificates, joining, trust
from deploy.cluster.invites import Token, TokenError
from deploy.config import load
from deploy.layout import Layout
from tests import command_line
from tests.deploy.cluster.machines import Inviting, Machine
from worker.storage import certificates as rows
from worker.storage.migrations import migrate


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, shared: str) -> Machine:
    """The machine that has the authority."""
    migrate(shared)
    more = "[limits.request]\nmax_steps = 40\n[gallery]\nkeep_days = 9.0"
    machine = Machine(tmp_path_factory.mktemp("first"), shared, more=more)
    machine.zimage("keys", "create", "ada")
    machine.zimage("cluster", "init")
    return machine


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The ``cluster.toml`` of a machine that joins, as bare as can be in a test."""
    (tmp_path / "second").mkdir()
    made = tmp_path / "second" / "cluster.toml"
    user = getpass.getuser()  # nobody becomes another
    made.write_text(f'[cell]\nuser = "{user}"\nvar_dir = "{made.parent}/var"  # ours\n')
    return made


def cell_of(path: Path) -> Cell:
    return Cell(load(path), path)


def test_bare_machine_gets_all_that_it_needs(first: Machine, path: Path) -> None:
    with first.inviting("gpu2", "--role", "both") as inviting:
        assert join_cluster(path, inviting.token, "127.0.0.1:9999") == path
        code, told = inviting.end()
    assert (code, "gpu2 has joined studio as host and front" in told) == (0, True), told
    second = cell_of(path)
    layout, config = second.layout, second.config
    assert (config.cluster.name, config.cluster.host) == ("studio", "gpu2")
    assert (config.cluster.role, config.cluster.address) == ("both", "127.0.0.1:9999")
    assert "# ours" in path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o777 == 0o644
    assert config.limits.request.max_steps == 40
    assert config.gallery.keep_days == 9.0
    assert config.model == first.cell.config.model
    assert config.listen.auth == "keys"
    assert trust.secrets_here(layout) == trust.secrets_here(first.layout)
    [own] = authority.load(first.layout)
    for role in certificates.ROLES:
        found = certificates.installed(layout, role)
        assert found is not None
        assert authority.has_signed(own.certificate, found)
        assert certificates.load_key(layout.cluster_key(role)).public_key() == found.public_key()
    assert layout.revocation_list.read_bytes() == first.layout.revocation_list.read_bytes()
    assert not layout.authority_key.exists()
    credentials = Path(config.objects.credentials_file)
    assert credentials.read_text(encoding="utf-8") == (first.folder / "credentials").read_text()
    public = {".crt", ".pem"}
    secret = {file for file in layout.cluster_dir.iterdir() if file.suffix not in public}
    assert {stat.S_IMODE(file.stat().st_mode) for file in secret} == {0o600}


def test_second_machine_uses_the_database_as_itself(first: Machine, path: Path) -> None:
    """With a role of its own, whose tables would be the cluster's."""
    with first.inviting("gpu-2") as inviting:
        join_cluster(path, inviting.token, "")
        assert "it has a role of its own" in inviting.end()[1]
    second = cell_of(path)
    assert "zimage_gpu_2@" in second.config.database.url
    assert Path(second.config.database.password_file).stat().st_mode & 0o777 == 0o600

    def who(connection: sa.Connection) -> tuple[str, str]:
        row = connection.exec_driver_sql("SELECT session_user, current_user").one()
        return row[0], row[1]

    assert store.run(second, who) == ("zimage_gpu_2", "zimage")


def test_same_token_again_converges_without_the_door(first: Machine, path: Path) -> None:
    with first.inviting("gpu2") as inviting:
        join_cluster(path, inviting.token, "")
        inviting.end()
    before = {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}
    assert join_cluster(path, inviting.token, "") == path
    assert {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()} == before


def add(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_file_that_says_something_else_is_left_and_the_token_stays_good(
    first: Machine, path: Path
) -> None:
    before = path.read_text(encoding="utf-8")
    add(path, '[model]\nsource = "tiny"\n[gallery]\nkeep_days = 8.0\n')
    with first.inviting("gpu2") as inviting:
        with pytest.raises(CellError) as refused:
            join_cluster(path, inviting.token, "")
        for line in ('model.source: there "tiny"', "gallery.keep_days: there 8.0"):
            assert line in str(refused.value)
        assert "[cluster]" not in path.read_text(encoding="utf-8")
        assert not Layout.of(load(path)).cluster_dir.exists()
        path.write_text(before, encoding="utf-8")
        join_cluster(path, inviting.token, "")
        assert inviting.end()[0] == 0


def test_own_way_to_database_and_bucket_is_kept(first: Machine, path: Path) -> None:
    own = path.parent / "own"
    own.write_text("[default]\n", encoding="utf-8")
    url = first.cell.config.database.url.replace("zimage@", "postgres@")
    add(path, f'[database]\nurl = "{url}"\n[objects]\nurl = "s3://pictures/studio"\n')
    add(path, f'endpoint = "http://127.0.0.1:1"\ncredentials_file = "{own}"\n')
    with first.inviting("gpu2") as inviting:
        join_cluster(path, inviting.token, "")
    config = load(path)
    assert config.database.url == url
    assert (config.database.password_file, config.objects.credentials_file) == ("", str(own))


def test_machine_that_was_a_cell_joins_and_joins_again(first: Machine, path: Path) -> None:
    """Its own secret is kept beside; its address within the cluster stays."""
    layout = cell_of(path).layout
    layout.var_dir.mkdir()
    layout.key_secret.write_bytes(b"own")
    for address in ("127.0.0.1:9999", ""):
        with first.inviting("gpu2") as inviting:
            join_cluster(path, inviting.token, address)
    assert layout.key_secret.read_bytes() == first.layout.key_secret.read_bytes()
    assert layout.key_secret.with_name("key-secret.before-joining").read_bytes() == b"own"
    assert load(path).cluster.address == "127.0.0.1:9999"
    store.run(cell_of(path), rows.all_good)  # as the role whose password is another now


def test_token_of_another_door_is_refused_before_anything_is_told(
    first: Machine, path: Path
) -> None:
    with first.inviting("gpu2") as inviting, first.inviting("gpu3") as other:
        ours, theirs = Token.of(inviting.token), Token.of(other.token)
        mixed = Token(theirs.door, ours.pin, ours.invite, ours.secret, "gpu2", "host")
        with pytest.raises(CellError, match="is not the machine that made the token"):
            join_cluster(path, mixed.text, "")
        join_cluster(path, inviting.token, "")


def test_interrupted_invite_is_good_no_more(first: Machine, path: Path) -> None:
    with first.inviting("gpu2") as inviting:
        token = Token.of(inviting.token)
        inviting.interrupt()
        assert inviting.end()[0] == 130
    assert store.run(first.cell, lambda c: rows.use(c, token.invite, b"")) is None
    with pytest.raises(CellError, match="does not answer"):
        join_cluster(path, inviting.token, "")


def test_machine_without_the_authority_invites_nobody(first: Machine, path: Path) -> None:
    with first.inviting("gpu2") as inviting:
        join_cluster(path, inviting.token, "")
    second = Machine(path.parent / "other", first.cell.config.database.url, host="gpu2")
    assert "where zimage cluster init ran" in second.refused("hosts", "invite", "gpu3")


@pytest.mark.parametrize("text", ["", "x", "zimage-join.", "zimage-join.e30", "zimage-join.\n"])
def test_what_is_no_token_is_told_so(text: str) -> None:
    with pytest.raises(TokenError, match="no token of zimage hosts invite"):
        Token.of(text)


def test_token_reads_as_it_was_written_and_its_secret_is_in_no_message() -> None:
    made = Token.new("10.0.0.7:7863", hashlib.sha256(b"x").digest(), "gpu2", "host")
    assert Token.of(made.text) == made
    assert made.secret.hex() not in repr(made)
    assert repr(made.secret) not in repr(made)


def up(path: Path, token: str, *words: str) -> "subprocess.CompletedProcess[str]":
    arguments = ("up", *words, "--config", str(path))
    return command_line.zimage(arguments, os.environ, typed=token)


def test_token_is_not_taken_from_the_command_line(path: Path) -> None:
    done = up(path, "", "--join", "zimage-join.secret")
    assert done.returncode == 2
    assert "read from standard input" in done.stderr


# What anybody may send to the door


@contextmanager
def connected(inviting: Inviting) -> Iterator[ssl.SSLSocket]:
    context = ssl._create_unverified_context()
    host, _, port = Token.of(inviting.token).door.rpartition(":")
    with (
        socket.create_connection((host, int(port)), 30) as plain,
        context.wrap_socket(plain) as connection,
    ):
        yield connection


def answered(inviting: Inviting, sent: bytes) -> bytes:
    with connected(inviting) as connection:
        connection.sendall(sent)
        received = b""
        while part := connection.recv(65_536):
            received += part
            if received.endswith(b"\n"):
                break
    return received


@pytest.mark.parametrize(
    "sent",
    [b"\n", b"{}\n", b"[1]\n", b"\xff\n", b'{"invite": 1}\n', json.dumps({
        "invite": "i", "secret": "00", "version": "1", "now": "late", "requests": {}
    }).encode() + b"\n"],
)  # fmt: skip
def test_door_answers_nonsense_with_no(first: Machine, path: Path, sent: bytes) -> None:
    with first.inviting("gpu2") as inviting:
        assert json.loads(answered(inviting, sent)) == {"refused": "this is no request to join"}
        join_cluster(path, inviting.token, "")


def send_without_end(inviting: Inviting) -> None:
    with connected(inviting) as connection:
        for _ in range(200):
            connection.sendall(os.urandom(65_536).replace(b"\n", b""))


def test_door_reads_no_more_than_it_needs(first: Machine, path: Path) -> None:
    with first.inviting("gpu2") as inviting:
        with pytest.raises(OSError, match=r"reset|EOF|closed|pipe"):
            send_without_end(inviting)
        join_cluster(path, inviting.token, "")


def test_door_stays_open_beside_those_who_say_nothing(first: Machine, path: Path) -> None:
    with first.inviting("gpu2") as inviting, connected(inviting), connected(inviting):
        join_cluster(path, inviting.token, "")
        assert inviting.end()[0] == 0


def test_settings_are_whole_toml(first: Machine, path: Path) -> None:
    with first.inviting("gpu2") as inviting:
        join_cluster(path, inviting.token, "[::1]:7862")
    told = tomllib.loads(path.read_text(encoding="utf-8"))
    assert told["cluster"]["address"] == "[::1]:7862"
    assert joining.has_joined(cell_of(path).layout, Token.of(inviting.token))
