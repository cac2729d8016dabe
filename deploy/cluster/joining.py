"""A machine joins a cluster: with the token of one that is in it, and with keys of its own."""

import copy
import json
import time
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from deploy import installation
from deploy.cell import CellError
from deploy.cluster import certificates, knock, toml_text, trust
from deploy.cluster.certificates import Request
from deploy.cluster.invites import Token
from deploy.cluster.trust import Secrets, Trust
from deploy.cluster.welcome import Welcome
from deploy.config import ClusterConfig, ConfigError, load, parse
from deploy.host import whole_file
from deploy.layout import Layout
from worker.storage.certificates import Document

DEFAULT_PORT = 7862
_NEW_MODE = 0o644
"""Of a ``cluster.toml`` that is new: it has no secrets, and the cell's user reads it."""

_NAMES = {
    "database.password_file": "database-password",
    "database.sslrootcert": "database-authority.pem",
    "objects.credentials_file": "bucket-credentials",
}


@dataclass(frozen=True)
class Joined:
    """What is yet to be written into the state directory, by the cell's own user."""

    token: Token
    requests: dict[str, Request]
    welcome: Welcome


def config_before(path: Path) -> ClusterConfig:
    """What ``path`` says now; all defaults where there is no such file."""
    return load(path) if path.exists() else parse({}, path)


def has_joined(layout: Layout, token: Token) -> bool:
    """Whether this machine has joined with this very token."""
    try:
        known = json.loads(_mark(layout).read_bytes())["invite"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(known == token.invite)


def join(path: Path, token: Token, address: str = "") -> Joined:
    """Knock, and write what the machine is told into the ``cluster.toml`` at ``path``. ``address``:
    where fronts find it; empty: by the one that the door sees, at port 7862. ``CellError``: nothing
    was written, and unless the door itself said no, the token is as good as before."""
    present = config_before(path)
    layout = Layout.of(present)
    told = {
        "invite": token.invite,
        "secret": token.secret.hex(),
        "version": installation.version(),
        "now": time.time(),
        "requests": {},
    }

    def found_at(own: str) -> str:
        return address or present.cluster.address or _with_port(own)

    def check(answer: dict[str, Any], own: str) -> None:
        files = dict.fromkeys(answer["files"], "")
        _fresh_config(path, _settings(layout, present, answer["settings"], files, found_at(own)))

    knock.ask(token, told, check)
    roles = certificates.roles_of(token.role)
    requests = {str(role): certificates.new_request(token.host) for role in roles}
    told["requests"] = {role: request.csr.decode() for role, request in requests.items()}

    def take(answer: dict[str, Any], own: str) -> Welcome:
        welcome = _welcome(answer)
        settings = _settings(layout, present, welcome.settings, welcome.files, found_at(own))
        _write_config(path, _fresh_config(path, settings))
        return welcome

    return Joined(token, requests, knock.ask(token, told, take))


def settle(layout: Layout, joined: Joined) -> None:
    """Write certificates, keys and secrets into the state directory."""
    welcome = joined.welcome
    for name, text in welcome.files.items():
        whole_file.write(layout.cluster_dir / _NAMES[name], text.encode(), 0o600)
    trust.write_trust(layout, Trust(welcome.authorities, welcome.revocations))
    secrets = Secrets.of_json(welcome.secrets.encode())
    keep_own(layout.key_secret, secrets.key_secret)
    trust.write_secrets(layout, secrets)
    for role in certificates.roles_of(welcome.role):
        whole_file.write(layout.cluster_key(role), joined.requests[role].key, 0o600)
        certificates.install(layout, role, welcome.certificates[role].encode())
    for name, version in welcome.versions.items():
        trust.note(layout, Document(name, b"", version))
    mark = {"invite": joined.token.invite, "cluster": welcome.cluster, "at": time.time()}
    whole_file.write(_mark(layout), json.dumps(mark).encode(), 0o600)


def keep_own(path: Path, fresh: bytes) -> None:
    """A cell that was here had keys of its own, which fit no other secret."""
    if path.exists() and (own := path.read_bytes()) != fresh:
        kept = path.with_name(f"{path.name}.before-joining")
        if not kept.exists():
            whole_file.write(kept, own, 0o600)


def _welcome(answer: dict[str, Any]) -> Welcome:
    try:
        return Welcome(**{field.name: answer[field.name] for field in fields(Welcome)})
    except KeyError as error:
        raise CellError(
            f"the answer of the door has no {error}: the other machine has another version of the "
            "code; make them equal, then ask for another token"
        ) from None


def _settings(
    layout: Layout,
    present: ClusterConfig,
    told: dict[str, Any],
    files: dict[str, str],
    address: str,
) -> dict[str, Any]:
    """For ``cluster.toml``: the files that it names lie in this machine's state directory. A way to
    the same database or bucket that stands there already is kept."""
    settings = copy.deepcopy(told)
    settings["cluster"]["address"] = address
    for name in files:
        section, key = name.split(".")
        file = str(layout.cluster_dir / _NAMES[name])
        if key == "sslrootcert":
            url = make_url(settings[section]["url"]).update_query_dict({key: file})
            settings[section]["url"] = url.render_as_string(hide_password=False)
        else:
            settings[section][key] = file
    if _is_same(present.database.url, settings["database"]["url"]):
        del settings["database"]
    if present.objects.url == settings["objects"]["url"]:
        settings["objects"].pop("credentials_file", None)
    return settings


def _is_same(own: str, told: str) -> bool:
    """Whether both lead to one database, whoever connects and however its server is known."""
    return bool(own) and _place(own) == _place(told)


def _place(url: str) -> Any:
    return make_url(url).set(username="-").difference_update_query(["sslrootcert"])


def _fresh_config(path: Path, settings: dict[str, Any]) -> str:
    """What ``path`` would say with ``settings``; ``CellError`` where it says something else."""
    text = path.read_text(encoding="utf-8-sig") if path.exists() else ""
    try:
        fresh = toml_text.with_settings(text, settings)
    except toml_text.Conflict as conflict:
        lines = "".join(f"\n  {line}" for line in conflict.lines)
        raise CellError(
            f"{path} says something else than the cluster; nothing was written:{lines}\n  take "
            "those lines out or make them equal, then the same token again within its time"
        ) from None
    except ValueError as error:
        raise CellError(
            f"{path} is written in a way that leaves no place for these; write them in yourself, "
            f"then the same token again within its time:\n{error}"
        ) from None
    _check(path, fresh)
    return fresh


def _write_config(path: Path, text: str) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else _NEW_MODE
    whole_file.write(path, text.encode(), mode)
    path.chmod(mode)  # whatever the umask says


def _check(path: Path, text: str) -> None:
    try:
        parse(tomllib.loads(text), path)
    except ConfigError as error:
        problems = "".join(f"\n  {problem}" for problem in error.problems)
        raise CellError(f"{path} would be wrong; nothing was written:{problems}") from None


def _with_port(own: str) -> str:
    return f"[{own}]:{DEFAULT_PORT}" if ":" in own else f"{own}:{DEFAULT_PORT}"


def _mark(layout: Layout) -> Path:
    return layout.cluster_dir / "joined.json"
