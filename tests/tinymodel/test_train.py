from pathlib import Path

import pytest
import torch
from diffusers import ZImagePipeline

from tinymodel import configs, train_vae
from tinymodel.data import pictures, sample
from tinymodel.schedule import Schedule
from tinymodel.train_transformer import Trainer, fill

CPU = torch.device("cpu")
SIZE = (160, 160)  # 100 tokens: padded


@torch.no_grad()
def test_normalising_changes_latents_but_not_what_the_decoder_makes_of_them() -> None:
    vae = configs.vae().eval()
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    latents = vae.encode(images).latent_dist.mode()
    read = vae.decoder.conv_in(latents)
    train_vae.normalise(vae, torch.linspace(-1, 1, 16), torch.linspace(0.5, 2, 16))
    normalised = vae.encode(images).latent_dist.mode()
    # At the edge, where the decoder pads with zeros, the offset shows.
    inner = (..., slice(1, -1), slice(1, -1))
    assert (normalised - latents).abs().mean() > 0.1
    assert (vae.decoder.conv_in(normalised) - read)[inner].abs().max() < 1e-4


def test_normalised_latents_have_the_mean_and_deviation_of_z_image(tmp_path: Path) -> None:
    samples = [sample(12, *SIZE, seed=0)]
    vae = train_vae.train(samples, Schedule(1, max_steps=1), tmp_path, pixels=160 * 160, device=CPU)
    latents = train_vae.encode(vae, pictures(samples[0], slice(0, 12), CPU))
    assert latents.mean().abs() < 0.3
    assert 0.7 < latents.std() < 1.3


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(configs.vae().eval(), Schedule(1, max_steps=2), tmp_path, CPU)


def test_training_changes_every_weight_that_draws(trainer: Trainer) -> None:
    before = {name: p.clone() for name, p in trainer.transformer.named_parameters()}
    trainer.run(fill(trainer.vae, [sample(4, *SIZE, seed=0)], 200, CPU))
    same = [n for n, p in trainer.transformer.named_parameters() if torch.equal(p, before[n])]
    assert same == []


def test_interrupted_training_goes_on_and_ends_as_a_pipeline(
    trainer: Trainer, tmp_path: Path
) -> None:
    trainer.run(fill(trainer.vae, [sample(4, *SIZE, seed=0)], 200, CPU))
    again = Trainer(trainer.vae, Schedule(1, max_steps=3), tmp_path, CPU)
    assert again.schedule.step == 2
    pipe = ZImagePipeline.from_pretrained(tmp_path / "weights", dtype=torch.float32)
    kept = again.average[0].state_dict()["x_pad_token"]
    assert (pipe.transformer.x_pad_token - kept).abs().max() < 1e-3


def test_pupil_starts_as_its_teacher_learns_and_goes_on_when_interrupted(
    trainer: Trainer, tmp_path: Path
) -> None:
    pools = fill(trainer.vae, [sample(4, *SIZE, seed=0)], 200, CPU)
    trainer.run(pools)
    before = [p.clone() for p in trainer.average[0].parameters()]
    for last in (2, 3):
        schedule = Schedule(1, max_steps=last)
        pupil = Trainer(
            trainer.vae, schedule, tmp_path, CPU, teacher=trainer.average, name="guided"
        )
        if last == 2:
            assert all(map(torch.equal, before, pupil.transformer.parameters()))
        else:
            assert schedule.step == 2
        pupil.run(pools)
    assert all(map(torch.equal, before, trainer.average[0].parameters()))
    assert not any(map(torch.equal, before, pupil.transformer.parameters()))


def test_teacher_is_asked_with_guidance_and_empty_prompts_stay(trainer: Trainer) -> None:
    trainer.teacher = trainer.average
    torch.manual_seed(0)
    mixture, time = torch.randn(2, 16, 16, 16), torch.tensor([0.2, 0.8])
    tokens = torch.zeros(2, 32, dtype=torch.long)
    tokens[:, :2] = torch.tensor([2, 3])  # an empty prompt: start and end
    tokens[1, :4] = torch.tensor([2, 10, 40, 3])
    plain = trainer._velocity(trainer.average, mixture, time, tokens)
    guided = trainer._guided(mixture, time, tokens)
    assert torch.allclose(guided[0], plain[0], atol=1e-5)
    assert not torch.allclose(guided[1], plain[1], atol=1e-3)
