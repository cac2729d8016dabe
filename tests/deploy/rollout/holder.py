"""A restart of w1 and w2 that comes to w2 and stays there. Its argument: the cell's folder."""

import sys
import time
from pathlib import Path

from deploy import drains
from deploy.cell import Cell
from deploy.config import parse
from deploy.rollout import interrupts, operation
from deploy.rollout_record import Step

if __name__ == "__main__":
    interrupts.install()
    cell = Cell(parse({"cell": {"var_dir": sys.argv[1]}}), Path("cluster.toml"))
    with operation.begin(cell, "restart", "restart --rolling w1 w2", ["w1", "w2"]) as rollout:
        rollout.enter("w1", Step.DONE)
        rollout.enter("w2", Step.DRAINING)
        with drains.held(cell.layout, "w2", "restart"):
            print(flush=True)
            time.sleep(60)
