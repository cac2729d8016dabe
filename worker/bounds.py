"""Bounds that the worker and the nginx before it share."""

MAX_JOB_BODY_BYTES = 8 << 20
"""Of a request that makes a job of up to 10,000 prompts."""

MAX_JOB_CHARS = MAX_JOB_BODY_BYTES
"""Of all prompts that a template makes: no more than a list of them could have."""
