from pathlib import Path

from deploy.rollout import lora_checks
from tests.deploy.rollout.test_checks import cell
from tests.worker.loras import put_lora


def test_files_that_no_request_can_use_are_named_with_the_remedy(tmp_path: Path) -> None:
    asked = cell(tmp_path, loras={"folder": str(tmp_path / "adapters")})
    assert list(lora_checks.doctor(asked)) == []
    put_lora(tmp_path / "adapters", "ink")
    [fine] = lora_checks.doctor(asked)
    assert (fine.level, fine.text) == ("ok", f"1 in {tmp_path / 'adapters'}")
    (tmp_path / "adapters/wash.safetensors").write_bytes(b"cut")
    [spoilt] = lora_checks.doctor(asked)
    assert (spoilt.level, spoilt.remedy) == ("warn", "copy or download it again")
    assert "wash.safetensors: it is no whole .safetensors file" in spoilt.text
