"""Whether this machine has what its part in a cluster takes, each finding with its remedy."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from deploy.cell import Cell
from deploy.finding import Finding

_WARN_BEFORE = timedelta(days=14)


def before_up(cell: Cell) -> Iterator[Finding]:
    cluster = cell.config.cluster
    if not cluster.on:
        return
    roles = [*(["host"] if cluster.draws else []), *(["front"] if cluster.fronts else [])]
    for role in roles:
        yield _certificate(cell, role)


def _certificate(cell: Cell, role: str) -> Finding:
    layout, subject = cell.layout, f"certificate of a {role}"
    own = layout.cluster_certificate(role)
    needed = [layout.authority_certificate, layout.revocation_list, layout.cluster_key(role), own]
    # What workers sign with is not asked for where there are none.
    needed += [layout.cluster_secret] if role == "host" else []
    missing = [path for path in needed if not path.is_file()]
    if missing:
        remedy = (
            "on the first machine: zimage cluster init; on another one: scripts/up --join -, "
            "with a token of zimage hosts invite"
        )
        return Finding("fail", subject, f"there is no {missing[0]}", remedy)
    return _validity(subject, own)


def _validity(subject: str, path: Path) -> Finding:
    try:
        ends = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        return Finding("fail", subject, f"{path} cannot be read: {error}", "join the cluster anew")
    left = ends - datetime.now(UTC)
    text = f"ends on {ends:%Y-%m-%d}, in {left.days} days"
    if left <= timedelta(0):
        return Finding("fail", subject, f"ended on {ends:%Y-%m-%d}", "join the cluster anew")
    if left < _WARN_BEFORE:
        return Finding("warn", subject, text, "it did not renew; see zimage logs membership")
    return Finding("ok", subject, text)
