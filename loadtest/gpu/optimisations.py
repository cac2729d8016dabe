"""Times steps, decoding and text encoding of Z-Image under each speed lever.

Every time is the median over calls that end with the device idle, as in the worker; the first
call of each shape, which builds kernels, is told apart. Each output is checked to be finite and
compared with what diffusers' own eager forward gives for the same input: ``off by`` is
‖out − eager‖ / ‖eager‖. One line a result, also as JSON to ``--out``.
"""

import argparse
import functools
import importlib
import io
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy
import torch
from diffusers.models.transformers.transformer_z_image import ZSingleStreamAttnProcessor

from loadtest.gpu import power
from worker.models.acceleration import optimisations
from worker.models.acceleration.fp8 import shrink_pipeline
from worker.models.acceleration.graphs import Graphs
from worker.models.loading.device import claim_device, dtype_for
from worker.models.loading.folder import Defaults
from worker.models.loading.load import adapted
from worker.models.loading.random_zimage import TURBO, random_zimage
from worker.models.zimage.decoder import PictureDecoder
from worker.models.zimage.dense import DenseTransformer
from worker.models.zimage.prompt_embeddings import PromptEncoder, Tokens
from worker.settings import Settings
from worker.types import DrawSpec, Parameters, Pixels

STEPS = {
    "own": optimisations.NONE,
    "own+graphs": optimisations.Optimisations(graphs=True),
    "kernels": optimisations.Optimisations(kernels=True),
    "kernels+graphs": optimisations.Optimisations(kernels=True, graphs=True),
    "kernels+cudnn+graphs": optimisations.Optimisations(
        kernels=True, attention="cudnn", graphs=True
    ),
    "kernels+flash+graphs": optimisations.Optimisations(
        kernels=True, attention="flash", graphs=True
    ),
    "kernels+flash4+graphs": optimisations.Optimisations(
        kernels=True, attention="flash4", graphs=True
    ),
    "kernels+flash4+quack+graphs": optimisations.Optimisations(
        kernels=True, attention="flash4", products="quack", graphs=True
    ),
}
DECODES = {
    "eager": optimisations.NONE,
    "graphs": optimisations.Optimisations(graphs=True),
    "kernels": optimisations.Optimisations(kernels=True),
    "kernels+graphs": optimisations.Optimisations(kernels=True, graphs=True),
}
PROMPT = "picture 3 of a harbour at dawn, 21"


@dataclass
class Bench:
    pipeline: Any
    out: Path | None
    deadline: float
    references: dict[Any, torch.Tensor] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    profiles: Path | None = None

    @functools.cached_property
    def default(self) -> optimisations.Optimisations:
        """What a worker does here where the settings say nothing."""
        return optimisations.choose(Settings(), self.device)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.pipeline.transformer.device
        return device

    @property
    def card(self) -> str | None:
        """Its UUID, by which NVML finds it whichever cards are visible."""
        if self.device.type != "cuda":
            return None
        return f"GPU-{torch.cuda.get_device_properties(self.device).uuid}"

    def over(self) -> bool:
        """No time for another measurement."""
        return time.monotonic() > self.deadline

    def measure(self, what: str, lever: str, shape: str, call: Callable[[], torch.Tensor]) -> None:
        """Print and keep one result; an error is a result too."""
        if self.over():
            return
        result: dict[str, Any] = {"what": what, "lever": lever, "shape": shape}
        try:
            with torch.no_grad():
                self._time(result, (what, shape), call)
        except Exception as error:
            result["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        self.note(result)

    def _time(self, result: dict[str, Any], key: Any, call: Callable[[], torch.Tensor]) -> None:
        first_s, output = self._timed(call)
        times = [self._timed(call)[0] for _ in range(calls(first_s))]
        times += [self._timed(call)[0] for _ in range(calls(min(times)) - len(times))]
        result["first_s"] = round(first_s, 2)
        result["ms"] = round(statistics.median(times) * 1000, 1)
        result["worst_ms"] = round(max(times) * 1000, 1)
        result["finite"] = bool(output.float().isfinite().all())
        reference = self.references.setdefault(key, output.float())
        off = (output.float() - reference).norm() / reference.norm()
        result["off_by"] = float(f"{off.item():.1e}")

    def _timed(self, call: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
        self.wait()
        began = time.perf_counter()
        output = call()
        self.wait()
        return time.perf_counter() - began, output

    def profile(self, name: str, call: Callable[[], torch.Tensor]) -> None:
        """The kernels that take longest, beside ``out``; only with ``--profile``."""
        if self.profiles is None or self.over():
            return
        with torch.no_grad(), torch.profiler.profile() as seen:
            call()
            self.wait()
        table = seen.key_averages().table(sort_by="self_device_time_total", row_limit=24)
        (self.profiles / f"{name}.txt").write_text(table)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def note(self, result: dict[str, Any]) -> None:
        result["at_s"] = round(time.monotonic() - self.began, 1)
        words = " ".join(f"{k}={v}" for k, v in result.items() if k not in ("what", "lever"))
        print(f"{result['what']:7} {result.get('lever', ''):32} {words}", flush=True)
        if self.out is not None:
            with self.out.open("a") as file:
                file.write(json.dumps(result) + "\n")


def calls(seconds: float) -> int:
    """How often to repeat what takes ``seconds``: about half a second in all."""
    return max(3, min(15, int(0.5 / max(seconds, 0.001))))


def steps(bench: Bench, shapes: list[tuple[int, int]], chosen: list[str]) -> None:
    """One forward; every lever for all shapes before the next lever."""
    inputs = {shape: step_inputs(bench, *shape) for shape in shapes}
    for (size, rows), (latents, times, hidden) in inputs.items():
        frames = [row.unsqueeze(1) for row in latents]
        call = functools.partial(diffusers_forward, bench, frames, times, hidden)
        bench.measure("step", "diffusers eager", f"{size}x{rows}", call)
    for name in chosen:
        dense, graphs = transformer(bench, STEPS[name])
        for (size, rows), (latents, times, hidden) in inputs.items():
            caption = caption_of(bench, hidden)
            captions = torch.stack([caption] * rows)
            call = functools.partial(dense, latents, times, captions)
            bench.measure("step", name, f"{size}x{rows}", call)
            bench.profile(f"step-{name}-{size}x{rows}", call)
        if graphs is not None and graphs.failure:
            bench.note({"what": "graphs", "lever": name, "failure": graphs.failure})


def lasting(
    bench: Bench, shapes: list[tuple[int, int]], chosen: list[str], seconds: float = 6.0
) -> None:
    """Steps one after the other, as under load, when the card may be at the limit of its power:
    each lever twice, in turns."""
    apply(bench, optimisations.NONE)
    for size, rows in shapes:
        latents, times, hidden = step_inputs(bench, size, rows)
        captions = torch.stack([caption_of(bench, hidden)] * rows)
        for name in chosen * 2:
            if bench.over():
                return
            call = functools.partial(transformer(bench, STEPS[name])[0], latents, times, captions)
            with torch.no_grad():
                _repeated(call, 1.0, bench.wait)
                with power.watched(bench.card) as drawn:
                    count, taken = _repeated(call, seconds, bench.wait)
            result: dict[str, float] = {"ms_a_picture": round(taken / count / rows * 1000, 2)}
            if drawn:
                result["joules_a_picture"] = round(drawn.pop("joules") / count / rows, 2)
            bench.note(
                {"what": "lasting", "lever": name, "shape": f"{size}x{rows}"} | result | drawn
            )


def there(bench: Bench, plans: Mapping[str, optimisations.Optimisations]) -> list[str]:
    """Those that this machine has the libraries for; the others are noted."""
    found = []
    for name, plan in plans.items():
        try:
            if plan.kernels:
                importlib.import_module("worker.models.acceleration.fused")
            optimisations.ways(plan)
            found.append(name)
        except ImportError as error:
            bench.note({"what": "missing", "lever": name, "error": str(error)})
    return found


def diffusers_forward(
    bench: Bench, frames: list[torch.Tensor], times: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    texts = [hidden] * len(frames)
    output = bench.pipeline.transformer(frames, times, texts, return_dict=False)[0]
    return torch.stack(output).squeeze(2)


def step_inputs(bench: Bench, size: int, rows: int) -> tuple[torch.Tensor, ...]:
    """Latents, times and the prompt's hidden states."""
    generator = torch.Generator("cpu").manual_seed(size + rows)
    dtype = bench.pipeline.transformer.dtype
    latents = torch.randn(rows, 16, size // 8, size // 8, generator=generator)
    times = torch.linspace(0.1, 0.9, rows)
    with torch.no_grad():
        (hidden,), _ = bench.pipeline.encode_prompt(
            [PROMPT], device=bench.device, do_classifier_free_guidance=False
        )
    return latents.to(bench.device, dtype), times.to(bench.device), hidden


@torch.no_grad()
def caption_of(bench: Bench, hidden: torch.Tensor) -> torch.Tensor:
    dense = DenseTransformer(bench.pipeline.transformer)
    filled = torch.nn.functional.pad(hidden, (0, 0, 0, -len(hidden) % 32))
    return dense.captions(filled[None], torch.tensor([len(hidden)], device=bench.device))[0]


def texts(bench: Bench, chosen: list[str]) -> None:
    for name in chosen:
        plan = DECODES[name]
        graphs = apply(bench, plan)
        dense = DenseTransformer(bench.pipeline.transformer, kernels=plan.kernels)
        encoder = PromptEncoder(bench.pipeline, dense, graphs, kept_tokens=0)
        for prompts in 1, 2, 4:
            tokens = [encoder._tokens(f"{PROMPT} {number}") for number in range(prompts)]

            def call(
                tokens: list[Tokens] = tokens, encoder: PromptEncoder = encoder
            ) -> torch.Tensor:
                return encoder._encoded(tokens)[0]

            bench.measure("encode", name, f"{len(tokens[0])} tokens x{prompts}", call)


def decodes(bench: Bench, sizes: list[int], chosen: list[str]) -> None:
    for name in chosen:
        decoder = PictureDecoder(bench.pipeline, apply(bench, DECODES[name]))
        for size in sizes:
            generator = torch.Generator("cpu").manual_seed(size)
            latents = torch.randn(16, size // 8, size // 8, generator=generator).to(bench.device)
            call = functools.partial(decoder, latents)
            bench.measure("decode", name, f"{size}x1", call)
            bench.profile(f"decode-{name}-{size}", call)


def pictures(bench: Bench, sizes: list[int], steps: int) -> None:
    """Whole pictures of four prompts: how far from diffusers' own, and again from the same seed."""
    plans = {"own": optimisations.NONE, "all levers": bench.default}
    specs = {
        s: [DrawSpec(f"{PROMPT} {n}", n, Parameters(s, s, steps)) for n in range(4)] for s in sizes
    }
    apply_nothing(bench)
    plain = {size: diffusers_pictures(bench, specs[size]) for size in sizes}
    for name, plan in plans.items():
        defaults = Defaults("z", steps=steps, guidance_scale=0.0, size=(256, 256))
        pipeline = adapted(bench.pipeline, defaults, 1 << 20, here(bench, plan))
        for size in sizes:
            if bench.over():
                return
            drawn = as_tensor(draw(pipeline, specs[size]))
            result: dict[str, Any] = {"what": "picture", "lever": name, "shape": f"{size}x4"}
            again = as_tensor(draw(pipeline, specs[size]))
            result["same_again"] = bool(torch.equal(drawn, again))
            bench.note(result | differences(drawn, plain[size]))


def diffusers_pictures(bench: Bench, specs: list[DrawSpec]) -> torch.Tensor:
    """What ``ZImagePipeline`` draws, each picture alone."""
    bench.pipeline.set_progress_bar_config(disable=True)
    drawn = [
        bench.pipeline(
            spec.prompt,
            height=spec.parameters.height,
            width=spec.parameters.width,
            num_inference_steps=spec.parameters.steps,
            guidance_scale=0.0,
            generator=torch.Generator("cpu").manual_seed(spec.seed),
        ).images[0]
        for spec in specs
    ]
    return as_tensor(drawn)


def as_tensor(pictures: Sequence[Any]) -> torch.Tensor:
    """Pictures × height × width × 3, fp32."""
    return torch.stack([torch.from_numpy(numpy.asarray(each)).float() for each in pictures])


def differences(drawn: torch.Tensor, plain: torch.Tensor) -> dict[str, float]:
    """Of pictures with values up to 255; ``spread``: how much there is to be seen in them."""
    off = (drawn - plain).abs()
    return {
        "mean_off": round(off.mean().item(), 3),
        "max_off": round(off.max().item()),
        "psnr_db": round(10 * torch.log10(255**2 / off.square().mean()).item(), 1),
        "spread": round(plain.std().item(), 1),
    }


def bare(bench: Bench, shapes: list[tuple[int, int]], seconds: float) -> None:
    """Pictures a second in a loop without queue, server and files; every prompt is new."""
    defaults = Defaults("z", steps=8, guidance_scale=0.0, size=(1024, 1024))
    pipeline = adapted(bench.pipeline, defaults, 1 << 20, bench.default)
    numbers = itertools.count()
    for size, rows in shapes:
        if bench.over():
            return

        def batch(size: int = size, rows: int = rows) -> None:
            how = Parameters(size, size, 8)
            specs = [DrawSpec(f"{PROMPT} {next(numbers)}", 0, how) for _ in range(rows)]
            draw(pipeline, specs)

        batch()
        with power.watched(bench.card) as drawn:
            count, taken = _repeated(batch, seconds)
        rate = {"images_per_s": round(count * rows / taken, 3)}
        bench.note(
            {"what": "bare", "lever": "all levers", "shape": f"{size}x{rows}"} | rate | drawn
        )


def baseline(bench: Bench, seconds: float = 6.0) -> None:
    """What a team writes first: diffusers' own call, eager, one picture at a time, and the file
    that Gradio makes of it, written before the next one begins."""
    apply_nothing(bench)
    bench.pipeline.set_progress_bar_config(disable=True)
    numbers = itertools.count()
    for file in ("png", "webp"):
        if bench.over():
            return

        def one(file: str = file) -> None:
            picture = bench.pipeline(
                f"{PROMPT} {next(numbers)}",
                height=1024,
                width=1024,
                num_inference_steps=8,
                guidance_scale=0.0,
            ).images[0]
            picture.save(io.BytesIO(), format=file)

        one()
        drawn, taken = _repeated(one, seconds)
        rate = {"images_per_s": round(drawn / taken, 3), "alone_s": round(taken / drawn, 3)}
        bench.note({"what": "base", "lever": f"diffusers, {file}", "shape": "1024x1"} | rate)


def apply_nothing(bench: Bench) -> None:
    """The model as diffusers loads it."""
    optimisations.apply(optimisations.NONE, bench.pipeline)
    transformer = bench.pipeline.transformer
    for block in (*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers):
        block.attention.set_processor(ZSingleStreamAttnProcessor())


def _repeated(
    call: Callable[[], object], seconds: float, wait: Callable[[], None] = lambda: None
) -> tuple[int, float]:
    """How often ``call`` and ``wait`` ran and how long that took, for at least ``seconds``."""
    began, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - began) < seconds:
        call()
        wait()
        count += 1
    return count, taken


def fp8(bench: Bench, shapes: list[tuple[int, int]], chosen: list[str]) -> None:
    """A step with 8-bit weights, which then stay: the last thing to be measured."""
    inputs = {shape: step_inputs(bench, *shape) for shape in shapes}
    captions = {shape: caption_of(bench, hidden) for shape, (_, _, hidden) in inputs.items()}
    shrink_pipeline(bench.pipeline, bench.device, "all")
    for name in chosen:
        plan = replace(STEPS[name], fp8="all")
        dense, _ = transformer(bench, plan)
        for (size, rows), (latents, times, _) in inputs.items():
            stacked = torch.stack([captions[size, rows]] * rows)
            call = functools.partial(dense, latents, times, stacked)
            bench.measure("step", f"fp8+{name}", f"{size}x{rows}", call)
            bench.profile(f"step-fp8-{name}-{size}x{rows}", call)


def draw(pipeline: Any, specs: list[DrawSpec]) -> list[Pixels]:
    samples = pipeline.start(specs)
    while not samples[0].drawn:
        pipeline.step(samples, lambda _: True)
    pictures: list[Pixels] = pipeline.finish(samples)
    return pictures


def transformer(
    bench: Bench, plan: optimisations.Optimisations
) -> tuple[DenseTransformer, Graphs | None]:
    graphs = apply(bench, plan)
    model = bench.pipeline.transformer
    ways = optimisations.ways(plan)
    dense = DenseTransformer(model, graphs, kernels=plan.kernels, ways=ways, backend=plan.backend)
    return dense, graphs


def apply(bench: Bench, plan: optimisations.Optimisations) -> Graphs | None:
    return optimisations.apply(here(bench, plan), bench.pipeline)


def here(bench: Bench, plan: optimisations.Optimisations) -> optimisations.Optimisations:
    """Without CUDA there are no graphs, so that the script can be tried anywhere."""
    return replace(plan, graphs=plan.graphs and bench.device.type == "cuda")


def loaded(args: argparse.Namespace) -> Any:
    device = claim_device(args.device)
    dtype = dtype_for("auto", device)
    if args.model == "random:z-image-turbo":
        return random_zimage(TURBO, device, dtype)
    return diffusers.ZImagePipeline.from_pretrained(
        args.model, dtype=dtype, device_map="cuda" if device.type == "cuda" else None
    )


def named(
    plans: Mapping[str, optimisations.Optimisations], names: str
) -> dict[str, optimisations.Optimisations]:
    """``names``: with commas between; "" for none."""
    return {name: plans[name] for name in names.split(",") if name}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="random:z-image-turbo")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--sizes", default="1024,512,256")
    parser.add_argument("--rows", default="1,4")
    parser.add_argument("--steps", default=",".join(STEPS), help=f"of {', '.join(STEPS)}")
    parser.add_argument("--decodes", default=",".join(DECODES), help=f"of {', '.join(DECODES)}")
    parser.add_argument("--pictures", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--baseline", action="store_true", help="diffusers alone, PNG and WebP")
    parser.add_argument("--lasting", help="like --steps: which to repeat for seconds, with power")
    parser.add_argument("--bare", action="store_true", help="pictures a second without a server")
    parser.add_argument("--bare-s", type=float, default=10.0, help="seconds for each shape of it")
    parser.add_argument("--fp8", action="store_true", help="a step with 8-bit weights")
    parser.add_argument("--profile", type=Path, help="a folder for the kernels that take longest")
    parser.add_argument("--limit-s", type=float, default=600.0, help="begin nothing after this")
    parser.add_argument("--out", type=Path, help="JSON lines, appended")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    began = time.monotonic()
    bench = Bench(loaded(args), args.out, began + args.limit_s, began=began, profiles=args.profile)
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else "cpu"
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    bench.note({"what": "machine", "lever": "", "name": name, "versions": versions})
    sizes = [int(size) for size in args.sizes.split(",")]
    shapes = [(size, int(rows)) for size in sizes for rows in args.rows.split(",")]
    if args.baseline:
        baseline(bench)
    chosen = there(bench, named(STEPS, args.steps))
    if chosen:
        steps(bench, shapes, chosen)
    if args.lasting:
        lasting(bench, shapes, there(bench, named(STEPS, args.lasting)))
    decoding = there(bench, named(DECODES, args.decodes))
    texts(bench, decoding)
    decodes(bench, sizes, decoding)
    if args.pictures:
        pictures(bench, sizes[1:] or sizes, steps=8)
    if args.bare:
        bare(bench, shapes, args.bare_s)
    if args.fp8:
        fp8(bench, shapes, chosen)
    if bench.device.type == "cuda":
        peak_gib = round(torch.cuda.max_memory_reserved() / 2**30, 1)
        bench.note({"what": "memory", "lever": "", "peak_gib": peak_gib})
    return 0


if __name__ == "__main__":
    sys.exit(main())
