"""The end of ``zimage hosts remove``: what the machine has opens nothing any more."""

from deploy import output
from deploy.cell import Cell, CellError

_STEP_S = 600.0


def shut_out(cell: Cell, host: str) -> None:
    """Revoke all that ``host`` has, and let the others sign with a new secret. Tells what is left
    to a person."""
    from deploy.cluster import revocation, rotation

    revoked = revocation.revoke(cell, host)
    output.step(f"revoked {revoked.certificates} certificates of {host}")
    if revoked.role_ended:
        output.step("its role of the database is gone, and its sessions with it")
    elif cell.config.database.password_file:
        output.warn(
            f"{host} had the cluster's own password of the database: change it there and in "
            "database.password_file of every machine, which is read at the next connection"
        )
    output.warn(f"unless {host} had credentials of the bucket for itself, change those, too")
    again = "zimage cluster rotate secret"
    if not revoked.published:
        output.warn(
            f"the machine with the cluster's authority tells the others; let it run {again}, for "
            f"{host} knows the secret"
        )
        return
    try:
        rotation.rotate_secret(cell, output.step, _STEP_S)
    except CellError as error:
        output.warn(f"{host} knows the secret that signs links and sign-ins: {error} ({again})")
