"""Keys at their old place: read by this version, with a warning; the next knows the new alone."""

from collections.abc import Callable
from typing import Any

_LIMITS = {
    "request": ("max_pixels", "max_steps", "max_images", "max_prompt_chars", "max_body_bytes"),
    "worker": (
        *("max_batch", "max_queued_requests", "max_queue_wait_s"),
        *("max_job_streams", "max_job_streams_per_key", "url_ttl_s"),
    ),
    "owner": ("job_keep_days", "max_open_jobs", "max_open_job_images", "max_job_mib"),
}


def in_place(data: dict[str, Any], warn: Callable[[str], None]) -> dict[str, Any]:
    """A copy of ``data`` with every key in its new place; ``warn`` gets a line for each that moved.

    A key that stands in both places stays in both: the old one is refused.
    """
    if not isinstance(data.get("limits"), dict):
        return data
    limits = {k: dict(v) if isinstance(v, dict) else v for k, v in data["limits"].items()}
    for table, keys in _LIMITS.items():
        target = limits.get(table, {})
        for key in keys:
            if key in limits and isinstance(target, dict) and key not in target:
                limits[table] = target = {**target, key: limits.pop(key)}
                warn(
                    f"limits.{key} is now limits.{table}.{key}: write it below [limits.{table}]; "
                    "the next version does not read the old name"
                )
    return {**data, "limits": limits}
