"""schemathesis: odd requests as the API's own document describes them, a thousand or so; with
``ZIMAGE_SCHEMATHESIS_EXAMPLES``, which ``scripts/fuzz`` sets, many times more."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
)


def try_all(url: str, headers: Mapping[str, str], folder: Path) -> None:
    """Nothing that is sent to ``url`` with ``headers``, a key's, may get a 5xx or an answer that
    the document has not. schemathesis keeps its examples in ``folder``."""
    checks = (*CHECKS, "ignored_auth") if headers else CHECKS
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
            *("--checks", ",".join(checks)),
            *("--max-examples", os.environ.get("ZIMAGE_SCHEMATHESIS_EXAMPLES", "5")),
            # The events of a paused job have no end.
            *("--exclude-path-regex", "/events$"),
            *("--request-timeout", "60", "--seed", "1", "--no-color", "--continue-on-failure"),
            *(f"--header={name}: {value}" for name, value in headers.items()),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    tried = re.search(r"(\d+) generated, \1 passed", done.stdout)
    assert tried, done.stdout[-3000:]
    assert int(tried[1]) > 1000
