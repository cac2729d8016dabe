from copy import deepcopy

import pytest
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel

from tinymodel import batched, build, tokenizer

PROMPTS = ["a large red circle on a white background", "左边一个蓝色星星，黄色背景"]


@pytest.fixture(scope="module")
def pipe() -> ZImagePipeline:
    pipe = build.random_pipeline()
    pipe.set_progress_bar_config(disable=True)
    # Zero as built: padding would not show.
    torch.nn.init.normal_(pipe.transformer.x_pad_token)
    torch.nn.init.normal_(pipe.transformer.cap_pad_token)
    return pipe


@pytest.fixture(scope="module")
def transformer(pipe: ZImagePipeline) -> ZImageTransformer2DModel:
    transformer = deepcopy(pipe.transformer)
    batched.use_real_rotary(transformer)
    return transformer


def _tokens() -> torch.Tensor:
    tokens = torch.zeros(2, 32, dtype=torch.long)
    for row, ids in enumerate(tokenizer.encode(tokenizer.build(), PROMPTS)):
        tokens[row, : len(ids)] = torch.tensor(ids)
    return tokens


@pytest.mark.parametrize(("height", "width"), [(16, 16), (18, 22)])
@torch.no_grad()
def test_velocity_is_the_librarys(
    pipe: ZImagePipeline, transformer: ZImageTransformer2DModel, height: int, width: int
) -> None:
    noise, time = torch.randn(2, 16, height, width), torch.tensor([0.1, 0.7])
    text, _ = pipe.encode_prompt(list(PROMPTS), do_classifier_free_guidance=False)
    theirs = torch.stack(pipe.transformer(list(noise.unsqueeze(2)), time, text)[0]).squeeze(2)
    encoded = batched.encode_text(pipe.text_encoder, _tokens())
    ours = batched.velocity(transformer, noise, time, encoded, _tokens())
    assert (ours - theirs).abs().max() < 1e-5
    assert theirs.std() > 0.1


def test_draw_is_the_pipelines(pipe: ZImagePipeline, transformer: ZImageTransformer2DModel) -> None:
    noise = torch.randn(2, 16, 16, 16)
    theirs = pipe(
        list(PROMPTS), height=128, width=128, num_inference_steps=4, guidance_scale=0.0,
        latents=noise, output_type="np",
    ).images  # fmt: skip
    ours = batched.draw(transformer, pipe.text_encoder, pipe.vae, _tokens(), noise, steps=4)
    assert abs(ours.permute(0, 2, 3, 1).numpy() - theirs).max() < 1e-4
