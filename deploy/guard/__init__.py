"""The guard: opens and closes the pool, kills what hangs, starts what supervisor gave up on.

``python -m deploy.guard <guard.json>``. Imports point downwards only:
``guard`` → ``state``, ``housekeeping``, ``metrics``, ``observer`` (→ ``history``, ``traffic``,
``gpus``) → ``watch`` → ``judge`` → ``probe``, ``gate``, ``process``, ``supervisor`` → ``settings``.
"""
