"""What the program reads that tells the cluster of this host."""

import json

from deploy import installation
from deploy.config import ClusterConfig
from deploy.layout import Layout, loras_of
from deploy.rendering.placement import model_source
from deploy.rendering.plan import Plan

MEMBERSHIP_CODE = (
    *("deploy/cluster", "deploy/config", "deploy/errors.py", "deploy/installation.py"),
    *("deploy/layout.py", "deploy/host/nginx_process.py", "deploy/host/whole_file.py"),
    *("worker/bounds.py", "worker/tables.py", "worker/coordination/host_drain.py"),
    *("worker/coordination/host_clocks.py", "worker/coordination/served_models.py"),
    *("worker/coordination/live_workers.py", "worker/coordination/heartbeat.py"),
    *("worker/models/loras/folder.py", "worker/models/loras/head.py", "worker/whole_file.py"),
    *("worker/storage", "worker/errors.py", "worker/log.py", "worker/outbox.py"),
    *("deploy/host/processes.py", "worker/whole_file.py", "worker/coordination/processes.py"),
)
"""All that it loads of ours: a change of it restarts it."""


def membership_document(
    config: ClusterConfig, plan: Plan, layout: Layout, python: str, config_path: str
) -> str:
    """The text of ``layout.membership_json``."""
    zimage = [python, "-P", "-m", "deploy.cli.app"]
    cluster = config.cluster
    told = {
        "cluster": cluster.name,
        "host": cluster.host_id,
        "address": cluster.address,
        "role": cluster.role,
        "version": installation.version(),
        "models": [model.name or model_source(model) for model in config.served],
        "serves": [
            {"name": model.name, "aliases": list(model.aliases), "source": model_source(model)}
            for model in (config.served if cluster.draws else ())
        ],
        "lora_dir": loras_of(config).folder or str(layout.var_dir / "loras"),
        "cluster_models_json": str(layout.cluster_models_json),
        "workers": len(plan.workers) if cluster.draws else 0,
        "database_url": layout.database_url,
        "var_dir": str(layout.var_dir),
        "run_dir": str(layout.run_dir),
        "cell_json": str(layout.cell_json),
        "hosts_json": str(layout.hosts_json),
        "metrics": str(layout.membership_metrics),
        "targets_json": str(layout.prometheus_targets),
        "host_drained_flag": str(layout.host_drained_flag),
        "upgrade_json": str(layout.host_upgrade_json),
        "upgrade_log": str(layout.log("upgrade")),
        "upgrade_command": [*zimage, "upgrade", "--config", config_path],
        "versions_dir": str(installation.BASE),
        "lost_s": config.front.lost_s,
    }
    return json.dumps(told, indent=2, ensure_ascii=False) + "\n"
