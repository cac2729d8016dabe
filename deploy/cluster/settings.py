"""What ``membership.json`` says: who this machine is within its cluster, and where its files lie.

Rendered from ``cluster.toml``, so that the program starts fast and never reads a half-edited file.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from worker.coordination.served_models import ServedModel
from worker.storage.hosts import Role


class MembershipSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    cluster: str
    host: str
    """This machine's name within the cluster."""
    address: str
    """Where fronts find it; empty for a front alone."""
    role: Role
    version: str
    models: tuple[str, ...]
    serves: tuple[ServedModel, ...] = ()
    """The same in full. An empty name: the loaded model says its own."""
    lora_dir: Path | None = None
    cluster_models_json: Path | None = None
    """Where workers read what the cluster serves."""
    workers: int
    """Those that are configured here."""
    database_url: str
    var_dir: Path
    run_dir: Path
    cell_json: Path
    hosts_json: Path
    metrics: Path
    """All hosts, for Prometheus."""
    targets_json: Path
    """Where Prometheus finds them: ``http_sd``."""
    host_drained_flag: Path
    upgrade_json: Path
    """What came of the last upgrade that was wanted of this host."""
    upgrade_log: Path
    upgrade_command: tuple[str, ...]
    """Takes this cell to the version that is named behind it."""
    versions_dir: Path
    """Where versions lie: whoever may not write there takes no other one."""
    lost_s: float
    """A front that has heard nothing of a host for so long says so."""


def load(path: Path) -> MembershipSettings:
    """``OSError``, or pydantic's ``ValidationError`` where the file is wrong."""
    return MembershipSettings.model_validate_json(path.read_bytes())
