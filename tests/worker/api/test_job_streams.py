"""Streams of jobs are shared: nobody takes those of others."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.worker.conftest import migrated, ready, serving, settings_in

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


def as_one_of(address: str) -> dict[str, Any]:
    return {"headers": {"X-Real-IP": address}}


async def test_one_address_leaves_streams_to_others(home: Path) -> None:
    settings = settings_in(home, model="synthetic:step_ms=50", max_job_streams_per_key=1)
    async with serving(migrated(settings)) as (service, client):
        await ready(service)
        job = {"prompts": ["a", "b"], "size": "64x64", "steps": 2}
        path = f"/v1/jobs/{(await client.post('/v1/jobs', json=job)).json()['id']}"
        await client.post(f"{path}/pause")
        streams = [
            asyncio.create_task(client.get(f"{path}/events", **as_one_of(f"10.0.0.{k}")))
            for k in range(2)
        ]
        async with asyncio.timeout(10):
            while service.components.job_streams._held.total() < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            refused = await client.get(f"{path}/events", **as_one_of("10.0.0.1"))
        assert refused.status_code == 429
        assert "as many as one key" in refused.json()["error"]["message"]
        await client.post(f"{path}/cancel")
        assert {(await stream).status_code for stream in streams} == {200}
        assert not service.components.job_streams._held
