"""What may go wrong in any command, as one clear message and an exit code."""

import errno
from collections.abc import Callable
from typing import Any

from deploy import output
from deploy.cell import CellError
from deploy.config import ConfigError
from deploy.host.account import AccountError
from deploy.rendering.certificate import CertificateError
from deploy.rollout.interrupts import Interrupted
from deploy.supervision.supervise import SupervisorError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def run(command: Callable[..., Any]) -> int:
    """Exit code of ``command``; click itself ends with 2 on misuse."""
    try:
        command()
    except ConfigError as error:
        output.fail(f"{error.path} is wrong; nothing was touched")
        for problem in error.problems:
            output.errors.print(f"  {problem}")
    except (CellError, CertificateError, SupervisorError, AccountError) as error:
        output.fail(str(error))
    except PermissionError as error:
        output.fail(f"{error}; run this as the user who ran `zimage up`, or as root")
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        output.fail(f"the disk is full: {error}; make room (df -h), then the same command again")
    except Interrupted as signal_seen:
        output.fail("interrupted: zimage status says what runs, zimage up completes it")
        return signal_seen.exit_code
    except SystemExit as ended:
        return int(ended.code or 0) if not isinstance(ended.code, str) else 1
    else:
        return 0
    return 1
