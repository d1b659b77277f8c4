"""`caspl bench engine`: images per second of the engine without HTTP, against itself and against plain open_clip.

All alternatives take turns in one process. Weights are random and images are noise: the cost of a ViT depends on
neither.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from benchmarks.bundles import BundleShape, domain_name, random_bundle
from benchmarks.engine_openvino import ALONE, MISSING, OpenVinoAlone, add_openvino_numbers, is_installed, variants
from benchmarks.load import popular_domains
from benchmarks.ratios import Spread, in_turn, ratio
from benchmarks.report import Report, Table, Target
from benchmarks.server import ServerOptions
from prompt_store.bundle import read_bundle
from prompted_clip.backbone import Backbone, load_backbone
from prompted_clip.preprocess import normalize_pixels
from prompted_clip.stack import PromptStack
from service.configuration.environment import load_settings
from service.engine.engine import Engine, EngineRow
from service.engine.loading import load_model

MIXED = 64
MIN_MIXED = {"cpu": (0.95, 0.85), "cuda": (0.97, 0.97)}
"""Targets for batches of 64 and of all domains, against one domain."""
SIZES = {"cpu": (4, 8, 16), "cuda": (32, 64, 128, 256)}
LIBRARY_SIZES = {"cpu": (1, 4, 8), "cuda": (32, 128, 256)}
TURN_S = 1.5
N_IMAGES, N_CLASSES, TOP_K = 64, 16, 5
PLAIN = BundleShape(boost_tokens=0, adapt_tokens=0)


@dataclass(frozen=True, kw_only=True)
class EngineOptions(ServerOptions):
    """Options of the command."""

    n_domains: int = 1000
    alpha: float = 0.6
    budget_s: float = 60.0


class OpenClip:
    """The plain library: `encode_image`, one product with class features, a softmax; one batch after the other."""

    def __init__(self, backbone: Backbone, images_NCHW: Tensor) -> None:
        self._backbone = backbone
        self._images = normalize_pixels(images_NCHW.to(backbone.device), backbone.preprocess).to(backbone.dtype)
        self._text_KE = torch.nn.functional.normalize(torch.randn(N_CLASSES, backbone.embed_dim), dim=-1)
        self._text_KE = self._text_KE.to(backbone.device)

    @torch.inference_mode()
    def run(self, n_rows: int, n_batches: int) -> None:
        """Classify batches and bring the probabilities to the host."""
        for _ in range(n_batches):
            features_BE = self._backbone.clip.encode_image(self._images[:n_rows], normalize=True).float()
            (self._backbone.logit_scale * features_BE @ self._text_KE.T).softmax(dim=-1).cpu()


class EngineBench:
    """The service's engine with random domains."""

    def __init__(self, options: EngineOptions, console: Console) -> None:
        given = {
            "backbone": options.backbone,
            "random_weights": options.random_seed,
            "device": options.device,
            "dtype": options.dtype,
            "backend": options.backend,
            "n_torch_threads": options.threads,
        }
        model = load_model(load_settings(**given | dict(options.extra)))
        self.backbone = model.backbone
        self.device = self.backbone.device.type
        self.n_parallel = model.num_streams
        self._engine = Engine(model)
        self.backend, self.dtype = self._engine.backend, self._engine.dtype
        self._loop = asyncio.Runner()
        size = self.backbone.image_size
        self.images = np.random.default_rng(0).integers(0, 256, (N_IMAGES, 3, size, size), dtype=np.uint8)
        console.print(f"loading {options.n_domains:,} domains")
        self._stacks = [self._stack(domain_name(index), BundleShape()) for index in range(options.n_domains)]
        self._plain = self._stack("plain", PLAIN)
        self._seeds = iter(range(10**9))

    def one_domain(self, n_rows: int) -> list[PromptStack]:
        """Stacks of a batch of one domain."""
        return self._stacks[:1] * n_rows

    def without_prompts(self, n_rows: int) -> list[PromptStack]:
        """Stacks of a batch without prompts."""
        return [self._plain] * n_rows

    def many_domains(self, n_rows: int, *, n_domains: int, alpha: float = 0.0) -> list[PromptStack]:
        """Stacks of a batch over the first domains, drawn by popularity."""
        drawn = popular_domains(n_domains, n_rows, alpha=alpha, seed=next(self._seeds))
        return [self._stacks[index] for index in drawn]

    def run(self, stacks: Callable[[int], Sequence[PromptStack]], n_rows: int, n_batches: int) -> None:
        """Run batches as the service does: on every device thread, with the next one waiting.

        Raises:
            RuntimeError: a row failed.
        """

        async def batches() -> None:
            free = asyncio.Semaphore(2 * self.n_parallel)

            async def batch() -> None:
                async with free:
                    images = (self.images[row % N_IMAGES] for row in range(n_rows))
                    rows = [EngineRow(image, stack, TOP_K) for image, stack in zip(images, stacks(n_rows), strict=True)]
                    answers = await self._engine.run(rows)
                if any(isinstance(answer, Exception) for answer in answers):
                    raise RuntimeError(f"the engine failed: {answers}")

            async with asyncio.TaskGroup() as tasks:
                for _ in range(n_batches):
                    tasks.create_task(batch())

        self._loop.run(batches())

    def close(self) -> None:
        """Stop the engine."""
        self._engine.close()
        self._loop.close()

    def _stack(self, domain: str, shape: BundleShape) -> PromptStack:
        return self._loop.run(self._engine.load(read_bundle(random_bundle(self.backbone, domain, 1, shape))))


def best_size(run: Callable[[int, int], None], sizes: Sequence[int], n_parallel: int) -> tuple[int, int]:
    """The fastest batch size, and how many such batches take about `TURN_S`."""
    found: dict[int, float] = {}
    for size in sizes:
        run(size, n_parallel)
        began_s = time.perf_counter()
        run(size, 2 * n_parallel)
        found[size] = 2 * n_parallel * size / (time.perf_counter() - began_s)
    size = max(found, key=lambda size: found[size])
    return size, n_parallel * max(1, round(TURN_S * found[size] / (size * n_parallel)))


def measure(options: EngineOptions, console: Console) -> Report:
    """Find the best batch sizes, then time all alternatives in turn."""
    with ExitStack() as stack:

        def started(options: EngineOptions) -> EngineBench:
            console.print(f"loading {options.backbone}, backend {options.backend}, dtype {options.dtype}")
            bench = EngineBench(options, console)
            stack.callback(bench.close)
            return bench

        bench = started(options)
        has_openvino = bench.device == "cpu" and is_installed()
        others = {name: started(given) for name, given in variants(options).items()} if has_openvino else {}
        report = _measure(bench, others, options, console)
    if bench.device == "cpu" and not has_openvino:
        report.notes.append(MISSING)
    return report


def _measure(bench: EngineBench, others: Mapping[str, EngineBench], options: EngineOptions, console: Console) -> Report:
    images = torch.from_numpy(bench.images)
    libraries = {f"open_clip, {dtype}": (OpenClip(one, images).run, 1) for dtype, one in _backbones(bench, options)}
    if others:
        exact = others["OpenVINO, float32"]
        libraries[ALONE] = OpenVinoAlone(exact.backbone, bench.images, exact.n_parallel).run, exact.n_parallel
    n_rows, n_batches = best_size(partial(bench.run, bench.one_domain), SIZES[bench.device], bench.n_parallel)
    draws: dict[str, Callable[[int], Sequence[PromptStack]]] = {
        "one domain": bench.one_domain,
        f"{MIXED} domains": partial(bench.many_domains, n_domains=MIXED),
        f"{options.n_domains:,} domains": partial(bench.many_domains, n_domains=options.n_domains, alpha=options.alpha),
        "no prompts": bench.without_prompts,
    }
    ways: dict[str, Callable[[], object]] = {
        name: partial(bench.run, stacks, n_rows, n_batches) for name, stacks in draws.items()
    }
    n_images = dict.fromkeys(ways, n_rows * n_batches)
    batch = dict.fromkeys(ways, n_rows)
    runs = {
        name: (partial(other.run, other.one_domain), SIZES[bench.device], other.n_parallel)
        for name, other in others.items()
    } | {name: (run, LIBRARY_SIZES[bench.device], n_parallel) for name, (run, n_parallel) in libraries.items()}
    for name, (run, sizes, n_parallel) in runs.items():
        size, times = best_size(run, sizes, n_parallel)
        ways[name], n_images[name], batch[name] = partial(run, size, times), size * times, size
    console.print(f"{len(ways)} alternatives in turn, {options.budget_s:g} s")
    taken_s = in_turn(ways, budget_s=options.budget_s)
    rates = {name: [n_images[name] / one_s for one_s in taken_s[name]] for name in ways}
    used = {"backend": bench.backend, "dtype": bench.dtype}
    report = Report("engine", asdict(options) | used, device=str(bench.backbone.device))
    add_numbers(report, rates, bench.dtype, options)
    if others:
        add_openvino_numbers(report, rates)
    rows = [
        (name, batch[name], f"{(one := Spread.of(found)).value:.2f}", f"{one.low:.2f} .. {one.high:.2f}")
        for name, found in rates.items()
    ]
    report.tables["Images per second"] = Table(("alternative", "batch", "median", "quartiles"), rows)
    report.samples["images_per_s"] = rates
    return report


def _backbones(bench: EngineBench, options: EngineOptions) -> Iterator[tuple[str, Backbone]]:
    """open_clip's model in the engine's dtype, unless that is int8, and in float32."""
    for dtype in dict.fromkeys((bench.dtype, "float32")):
        if dtype == str(bench.backbone.dtype).removeprefix("torch."):
            yield dtype, bench.backbone
        elif dtype != "int8":
            given = {"device": str(bench.backbone.device), "dtype": getattr(torch, dtype)}
            yield dtype, load_backbone(options.backbone, random_seed=options.random_seed, **given)


def add_numbers(report: Report, rates: dict[str, list[float]], dtype: str, options: EngineOptions) -> None:
    """Add the ratios of the rates to a report."""
    one = rates["one domain"]
    min_64, min_all = MIN_MIXED[torch.device(report.device).type]
    if dtype != "int8":
        report.add(
            "vs_open_clip_same_dtype",
            ratio(one, rates[f"open_clip, {dtype}"]),
            f"images/s with 12 prompt tokens / open_clip without prompts, both {dtype}",
            Target(">=", 1.0),
        )
    if dtype != "float32":
        report.add(
            "vs_open_clip_float32",
            ratio(one, rates["open_clip, float32"]),
            f"images/s with 12 prompt tokens in {dtype} / open_clip in float32",
        )
    report.add(
        "mixed_64",
        ratio(rates[f"{MIXED} domains"], one),
        f"images/s with rows of {MIXED} domains in a batch / of one domain",
        Target(">=", min_64),
    )
    report.add(
        "mixed_all",
        ratio(rates[f"{options.n_domains:,} domains"], one),
        f"the same with {options.n_domains:,} domains, popularity rank^-{options.alpha:g}",
        Target(">=", min_all),
    )
    report.add(
        "prompt_overhead", ratio(rates["no prompts"], one), "time with 12 prompt tokens / without", Target("<=", 1.08)
    )
