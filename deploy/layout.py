"""Where everything of one cell lies. No other module joins these paths."""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from deploy.config import ROOT, ClusterConfig
from deploy.installation import BASE
from worker.bounds import MAX_SOCKET_PATH_BYTES
from worker.coordination import host_drain
from worker.coordination.host_clocks import cluster_models, host_list
from worker.tables import Loras, Objects

_LONGEST_SOCKET_NAME = "supervisor.sock.1234567"  # supervisord binds <name>.<pid>, then links it

_SQLITE = "sqlite:///"

MARK = ".zimage-cell"
"""In a state directory that was made for a cell. Root gives no other folder to the service user."""

_MARK_TEXT = "This folder was made for a cell of zimage-cluster and holds its state alone.\n"


@dataclass(frozen=True)
class Layout:
    """Paths of a cell; absolute, and pure: nothing here touches the disk but ``create``."""

    var_dir: Path
    run_dir: Path
    database_file: Path | None = None
    short_link: Path | None = None
    postgres_url: str = ""
    """Of the database, where it is no file. The password is no part of it, but the file's name."""
    """Leads to ``var_dir``, whose own name is too long for sockets. Nothing is lost with it."""

    @classmethod
    def of(cls, config: ClusterConfig) -> "Layout":
        """As the configuration says; where sockets' paths would be too long, by a short name."""
        var_dir = under_root(config.cell.var_dir)
        url = config.database.url
        postgres = _postgres_url(config) if config.database.is_postgres else ""
        database = Path(url.removeprefix(_SQLITE)) if url and not postgres else None
        if config.cell.run_dir:
            run_dir = under_root(config.cell.run_dir)
            return cls(var_dir, run_dir, database, postgres_url=postgres)
        plain = cls(var_dir, var_dir / "run", database, postgres_url=postgres)
        if not too_long_by(plain):
            return plain
        link = _short_link(var_dir)
        return cls(var_dir, link / "run", database, link, postgres)

    # run: sockets, heartbeats, locks
    def socket(self, worker: str) -> Path:
        return self.run_dir / f"{worker}.sock"

    def heartbeat(self, worker: str) -> Path:
        return self.run_dir / f"{worker}.beat"

    def lock(self, worker: str) -> Path:
        return self.run_dir / f"{worker}.lock"

    @property
    def closed_socket(self) -> Path:
        """Bound, never listening: what a closed gate points to."""
        return self.run_dir / "closed.sock"

    @property
    def supervisor_socket(self) -> Path:
        return self.run_dir / "supervisor.sock"

    @property
    def guard_socket(self) -> Path:
        """The guard's metrics."""
        return self.run_dir / "guard.sock"

    @property
    def run_record(self) -> Path:
        """A copy of ``processes``, for other cells that would use the same sockets."""
        return self.run_dir / "processes.json"

    # pool: one link a worker, opened and closed by the guard
    @property
    def pool_dir(self) -> Path:
        # Beside the sockets: nginx connects through these paths, so they must be short too.
        return self.run_dir.parent / "pool" if self._default_run_dir else self.run_dir / "pool"

    def gate(self, worker: str) -> Path:
        return self.pool_dir / f"{worker}.sock"

    @property
    def _default_run_dir(self) -> bool:
        return self.run_dir == (self.short_link or self.var_dir) / "run"

    # rendered
    @property
    def render_dir(self) -> Path:
        return self.var_dir / "render"

    @property
    def nginx_conf(self) -> Path:
        return self.render_dir / "nginx.conf"

    @property
    def supervisord_conf(self) -> Path:
        return self.render_dir / "supervisord.conf"

    @property
    def guard_json(self) -> Path:
        return self.render_dir / "guard.json"

    @property
    def models_json(self) -> Path:
        """What workers are told of the models of a cell that has several."""
        return self.render_dir / "models.json"

    @property
    def monitoring_dir(self) -> Path:
        """For Prometheus and Grafana; nothing of the cell reads it."""
        return self.render_dir / "monitoring"

    # state
    @property
    def logs_dir(self) -> Path:
        return self.var_dir / "logs"

    def log(self, program: str) -> Path:
        """Standard output and error of one supervised program."""
        return self.logs_dir / f"{program}.log"

    @property
    def access_log(self) -> Path:
        return self.logs_dir / "access.log"

    @property
    def host_access_log(self) -> Path:
        """What fronts asked the host, where the other log has clients' requests of a front."""
        return self.logs_dir / "host-access.log"

    @property
    def nginx_error_log(self) -> Path:
        return self.logs_dir / "nginx-error.log"

    @property
    def state_dir(self) -> Path:
        return self.var_dir / "state"

    # By which commands know a cell again: not in the run directory, which may be cleaned.
    @property
    def processes(self) -> Path:
        """JSON: pid and start time of every process that the cell started."""
        return self.state_dir / "processes.json"

    @property
    def up_lock(self) -> Path:
        """Held by the one command that changes the cell."""
        return self.state_dir / "up.lock"

    @property
    def rollout_json(self) -> Path:
        """The command that changes the cell, or that was the last to do so."""
        return self.state_dir / "rollout.json"

    @property
    def supervisor_pid(self) -> Path:
        return self.state_dir / "supervisord.pid"

    @property
    def nginx_pid(self) -> Path:
        return self.state_dir / "nginx.pid"

    @property
    def cell_json(self) -> Path:
        return self.state_dir / "cell.json"

    @property
    def history_json(self) -> Path:
        """The last hours, for the ops page."""
        return self.state_dir / "history.json"

    @property
    def drained_dir(self) -> Path:
        return self.state_dir / "drained"

    def drained_flag(self, worker: str) -> Path:
        return self.drained_dir / worker

    @property
    def strikes_dir(self) -> Path:
        return self.var_dir / "strikes"

    @property
    def audit_dir(self) -> Path:
        return self.var_dir / "audit"

    @property
    def images_dir(self) -> Path:
        return self.var_dir / "images"

    @property
    def undelivered_dir(self) -> Path:
        """Answers whose client has gone and may ask again; the guard deletes them."""
        return self.var_dir / "undelivered"

    @property
    def tmp_dir(self) -> Path:
        """nginx's temporary files: bodies and replies that do not fit its memory."""
        return self.var_dir / "tmp"

    @property
    def replies_dir(self) -> Path:
        """Large answers on their way from a worker to nginx; the guard deletes them."""
        return self.tmp_dir / "replies"

    @property
    def cache_dir(self) -> Path:
        return self.var_dir / "cache"

    @property
    def model_caches(self) -> dict[str, str]:
        """Where models of hubs lie, as the hubs' libraries read it."""
        caches = {"HF_HOME": "hub", "MODELSCOPE_CACHE": "modelscope"}
        return {variable: str(self.cache_dir / name) for variable, name in caches.items()}

    # HTTPS
    @property
    def tls_dir(self) -> Path:
        return self.var_dir / "tls"

    @property
    def active_pair(self) -> Path:
        """A link to the folder of the pair that new connections are shown."""
        return self.tls_dir / "shown"

    @property
    def pair(self) -> Path:
        """Key and chain as nginx reads them, this user's alone."""
        return self.active_pair / "pair.pem"

    @property
    def certificate(self) -> Path:
        """The chain without its key, for those who are to trust it."""
        return self.tls_dir / "certificate.pem"

    @property
    def certificate_json(self) -> Path:
        """Its names and its end, for the guard."""
        return self.tls_dir / "certificate.json"

    @property
    def self_signed(self) -> Path:
        return self.tls_dir / "self-signed.pem"

    @property
    def acme_dir(self) -> Path:
        """Where certbot leaves the answers to its certificate authority's questions."""
        return self.var_dir / "acme"

    @property
    def first_picture(self) -> Path:
        return self.var_dir / "first-picture.png"

    @property
    def web_dir(self) -> Path:
        """The static page, part of the checkout."""
        return ROOT / "web"

    @property
    def database(self) -> Path:
        """Keys, usage, pictures and jobs, unless PostgreSQL has them."""
        return self.database_file or self.var_dir / "zimage.db"

    @property
    def database_url(self) -> str:
        """What workers connect to."""
        return self.postgres_url or f"{_SQLITE}{self.database}"

    @property
    def database_name(self) -> str:
        """As messages call it."""
        return self.postgres_url.partition("?")[0] or str(self.database)

    @property
    def docs_dir(self) -> Path:
        """Where the runbook is that alerts link to."""
        return ROOT / "docs"

    @property
    def key_secret(self) -> Path:
        """Without it no stored key fits any more: a backup needs it beside the database."""
        return self.var_dir / "key-secret"

    # several hosts
    @property
    def cluster_dir(self) -> Path:
        """Certificates and secrets of this machine's part in a cluster, this user's alone."""
        return self.var_dir / "cluster"

    @property
    def authority_certificate(self) -> Path:
        """Of the cluster's certificate authority: whom fronts and hosts trust."""
        return self.cluster_dir / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """Only where ``zimage cluster init`` ran."""
        return self.cluster_dir / "ca.key"

    @property
    def revocation_list(self) -> Path:
        """The CRL; nginx wants one from the first moment."""
        return self.cluster_dir / "crl.pem"

    def cluster_certificate(self, role: str) -> Path:
        """Of this machine as "host" (a server's) or "front" (a client's)."""
        return self.cluster_dir / f"{role}.crt"

    def cluster_key(self, role: str) -> Path:
        return self.cluster_dir / f"{role}.key"

    @property
    def cluster_certificates_json(self) -> Path:
        """When the first of this machine's certificates ends, for the guard."""
        return self.cluster_dir / "certificates.json"

    @property
    def cluster_secret(self) -> Path:
        """From it links, places and cookies are derived, the same on every host."""
        return self.cluster_dir / "secret"

    @property
    def hosts_json(self) -> Path:
        """The hosts as the database last listed them; a front goes by it, also without one."""
        return host_list(self.var_dir)

    @property
    def cluster_models_json(self) -> Path:
        """The models that they serve, all together, as workers read it."""
        return cluster_models(self.var_dir)

    @property
    def membership_json(self) -> Path:
        """What the program reads that tells the cluster of this host."""
        return self.render_dir / "membership.json"

    @property
    def host_upgrade_json(self) -> Path:
        """What came of the last upgrade that the cluster wanted of this host."""
        return self.state_dir / "host-upgrade.json"

    @property
    def membership_metrics(self) -> Path:
        """The hosts of the cluster in Prometheus' text format."""
        return self.state_dir / "hosts.prom"

    @property
    def prometheus_targets(self) -> Path:
        """Where Prometheus finds the other hosts of the cluster."""
        return self.state_dir / "prometheus-targets.json"

    @property
    def host_drained_flag(self) -> Path:
        """While it is there, somebody wants this host out: workers begin nothing of jobs."""
        return host_drain.flag(self.run_dir)

    # alarms
    @property
    def alarms_json(self) -> Path:
        """What the relay of alarms is told."""
        return self.render_dir / "alarms.json"

    @property
    def alarms_socket(self) -> Path:
        return self.run_dir / "alarms.sock"

    @property
    def told_json(self) -> Path:
        """When each was told of an alarm last, or could not be."""
        return self.state_dir / "told.json"

    @property
    def links_dir(self) -> Path:
        """A configuration for each link to a host, and which host has which."""
        return self.var_dir / "links"

    @property
    def links_json(self) -> Path:
        """Which host has which link."""
        return self.links_dir / "links.json"

    @property
    def links_begun(self) -> Path:
        """Changed when the guard last had links made."""
        return self.links_dir / "begun"

    def link_conf(self, link: str) -> Path:
        return self.links_dir / f"{link}.conf"

    def link_pid(self, link: str) -> Path:
        return self.links_dir / f"{link}.pid"

    def link_socket(self, link: str) -> Path:
        """Where a link to a host takes requests; ``gate(link)`` leads there."""
        return self.run_dir / f"{link}-http.sock"

    @property
    def directories(self) -> tuple[Path, ...]:
        return (
            self.var_dir,
            self.run_dir,
            self.pool_dir,
            self.render_dir,
            self.logs_dir,
            self.state_dir,
            self.drained_dir,
            self.strikes_dir,
            self.images_dir,
            self.tmp_dir,
            self.replies_dir,
            self.cache_dir,
            self.acme_dir,
        )

    def create(self) -> None:
        """Make the directories; the run directory is this user's alone, or PermissionError."""
        # Prompts, pictures and keys: this user's alone, unless who made it shares it.
        self.var_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not any(self.var_dir.iterdir()):
            (self.var_dir / MARK).write_text(_MARK_TEXT, encoding="utf-8")
        self.make_short_link()
        self.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.run_dir.lstat()  # in /tmp, somebody else may have been here first
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise PermissionError(f"{self.run_dir} is not a directory of this user")
        self.run_dir.chmod(0o700)
        for directory in self.directories:
            directory.mkdir(parents=True, exist_ok=True)

    def make_short_link(self) -> bool:
        """Whether the short name was missing, and is there now; PermissionError where another
        user has made it, who could lead requests elsewhere."""
        if self.short_link is None or _leads(self.short_link, self.var_dir):
            return False
        try:
            self.short_link.symlink_to(self.var_dir)
        except FileExistsError:
            if _leads(self.short_link, self.var_dir):  # somebody of us was quicker
                return False
            raise PermissionError(f"{self.short_link} is not a link of this cell") from None
        return True


def under_root(path: str) -> Path:
    """``path`` made absolute: ``~`` is home, and relative paths start at the installation."""
    return Path(os.path.normpath(BASE / Path(path).expanduser()))


def objects_of(config: ClusterConfig) -> Objects:
    """``[objects]`` as workers have it: with an absolute path."""
    told = config.objects
    path = str(under_root(told.credentials_file)) if told.on else ""
    return Objects(**{**told.model_dump(), "credentials_file": path})


def loras_of(config: ClusterConfig) -> Loras:
    """``[loras]`` as workers have it: with an absolute path, or none."""
    told = config.loras
    folder = str(under_root(told.folder)) if told.folder else ""
    return Loras(**{**told.model_dump(), "folder": folder})


def _postgres_url(config: ClusterConfig) -> str:
    url, file = config.database.url, config.database.password_file
    if not file:
        return url
    joint = "&" if "?" in url else "?"
    return f"{url}{joint}password_file={quote(str(under_root(file)))}"


def too_long_by(layout: Layout) -> int:
    """Bytes by which the cell's longest socket path is too long; 0 when it fits."""
    names = [layout.run_dir / _LONGEST_SOCKET_NAME, layout.gate("w" * 16)]
    return max(0, max(len(os.fsencode(n)) for n in names) - MAX_SOCKET_PATH_BYTES)


def _short_link(var_dir: Path) -> Path:
    """In /run, which nobody cleans, where root has made or makes it; else in /tmp, where the guard
    makes it again.

    Not in $XDG_RUNTIME_DIR: it goes when its user logs out, and a cell stays.
    """
    digest = hashlib.sha256(os.fsencode(var_dir)).hexdigest()[:8]
    lasting = Path(f"/run/zimage-{digest}")
    if _leads(lasting, var_dir) or (os.getuid() == 0 and os.access("/run", os.W_OK)):
        return lasting
    return Path(f"/tmp/zimage-cell-{os.getuid()}-{digest}")


def _leads(link: Path, var_dir: Path) -> bool:
    try:
        return link.readlink() == var_dir and link.lstat().st_uid in {0, os.getuid()}
    except OSError:
        return False
