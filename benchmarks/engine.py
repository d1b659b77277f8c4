"""`caspl bench engine`: how fast the engine answers, without HTTP, against itself, open_clip and bare matrix products.

All ways of one round run in one process on the same threads, in turn. Random weights and noise pictures: what a ViT
costs depends on neither.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from benchmarks.breakdown import shares
from benchmarks.bundles import BundleShape
from benchmarks.engine_rows import Batch, Feeder, noise, register, run_batches
from benchmarks.interleaved import in_turn
from benchmarks.matmuls import Products, forward_products
from benchmarks.operations import operations
from benchmarks.served_model import ServedModel
from prompted_clip.backbone import Backbone, load_backbone
from prompted_clip.fused_linear import Linears
from prompted_clip.fused_vision import FusedImageTower
from prompted_clip.model import PromptedClip
from prompted_clip.preprocess import normalize_pixels
from prompted_clip.prompts import join_groups
from prompted_clip.threads import compute_alone
from service.engine.engine import Engine
from service.images.preprocessing import Pixels
from service.server import chosen_device, load_model
from service.settings import Settings

MIXED, REGISTERED, SLOTS = 64, 1000, 64
CPU_SIZES, CUDA_SIZES = (1, 2, 4, 8, 16), (1, 8, 32, 64, 128, 256, 512)
OPEN_CLIP_SIZES = {"cpu": (1, 4, 8), "cuda": (32, 128, 256)}
BATCHES_PER_TURN = {"cpu": 4, "cuda": 16}
"""Most, of every runner: a device, or a core that runs batches of its own."""
TURN_S = 1.5
"""About what a turn takes, unless a batch of every runner takes longer: of a machine that others use, too, many short
turns tell more than few long ones."""
LONGEST_S = 2.5
"""A batch of every runner of ours may take: with longer ones there would be few turns."""
NEARLY = 0.97
SQUARE = {"cpu": 2048, "cuda": 8192}
"""Side of the square product, in elements."""
N_DEVICE_TURNS = 200
PLAIN = BundleShape(boost_tokens=0, adapt_tokens=0)


@dataclass(frozen=True, kw_only=True)
class EngineOptions(ServedModel):
    """What to measure; see the command's help."""

    batch_rows: int = 0
    n_registered: int = REGISTERED
    n_slots: int = SLOTS
    alpha: float = 0.6
    tokens: int = 12
    n_classes: int = 16
    budget_s: float = 100.0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batches to try."""
        if self.batch_rows:
            return (self.batch_rows,)
        return CUDA_SIZES if chosen_device(super().settings()).startswith("cuda") else CPU_SIZES

    def settings(self) -> Settings:
        """Those of a service that makes batches of every size that is tried."""
        settings = super().settings()
        return settings.model_copy(update={"max_batch_rows": max(settings.max_batch_rows, *self.sizes)})

    def shape(self) -> BundleShape:
        """Of every prompted domain: two thirds boosting, one third adapting prompts."""
        n_adapt = self.tokens // 3
        return BundleShape(self.tokens - n_adapt, n_adapt, n_classes=self.n_classes)


class OpenClip:
    """The plain library: `encode_image`, a product with the class features, a softmax, one batch after the other.

    Args:
        backbone: whose open_clip model runs.
        n_classes: rows of the class features.
    """

    def __init__(self, backbone: Backbone, n_classes: int) -> None:
        self._backbone = backbone
        generator = torch.Generator().manual_seed(0)
        text_KE = torch.randn(n_classes, backbone.embed_dim, generator=generator)
        self._text_KE = torch.nn.functional.normalize(text_KE, dim=-1).to(backbone.device)

    def images(self, pictures: Pixels, n_rows: int) -> Tensor:
        """Normalised images of its dtype, on its device, so that only the model itself is timed."""
        pixels = torch.from_numpy(pictures[np.arange(n_rows) % len(pictures)]).to(self._backbone.device)
        return normalize_pixels(pixels, self._backbone.preprocess).to(self._backbone.dtype)

    @torch.inference_mode()
    def answer(self, images_BCHW: Tensor) -> Tensor:
        """Probabilities [B, K], on the host."""
        f_BE: Tensor = self._backbone.clip.encode_image(images_BCHW, normalize=True).float()
        return (self._backbone.logit_scale * f_BE @ self._text_KE.T).softmax(dim=-1).cpu()


class EngineBench:
    """Everything that is timed, made ready.

    Args:
        options: what to measure.
        console: told what happens.
    """

    def __init__(self, options: EngineOptions, console: Console) -> None:
        self.options = options
        console.print(f"loading {options.backbone}")
        settings = options.settings()
        served = load_model(settings)
        self.backbone: Backbone = served.backbone
        self.device = self.backbone.device.type
        self.linears = Linears.usual(self.backbone.device, self.backbone.dtype)
        if isinstance(served.image_tower, FusedImageTower):
            self.linears = served.image_tower.linears
        self.n_runners = served.num_streams
        self.roomy = in_bank(served, options.n_registered + 1)
        self.precise = load_backbone(options.backbone, random_seed=options.weights_seed, device=self.backbone.device)
        self._cores = None
        if self.n_runners > 1:
            self._cores = ThreadPoolExecutor(self.n_runners, initializer=compute_alone)
        self._loop = asyncio.Runner()
        self._pictures = noise(self.backbone.image_size, seed=options.seed)
        self._engines = [Engine(self.roomy), Engine(in_bank(served, options.n_slots))]
        crowd = self._feeder(self._engines[0], served, options.n_registered, options.shape(), console)
        plain = self._feeder(self._engines[0], served, 1, PLAIN, console)
        quick_model = load_model(settings.model_copy(update={"quick_gelu": True}))
        self._engines.append(Engine(quick_model))
        quick = self._feeder(self._engines[-1], quick_model, 1, PLAIN, console)
        paged = Feeder(self._engines[1], crowd.stacks, self._pictures, crowd.rng)
        together = Engine(in_bank(served, options.n_slots, num_streams=1))
        self._engines.append(together)
        self._draws: dict[str, tuple[Feeder, Callable[[int], Batch]]] = {
            "single": (crowd, crowd.single),
            "mixed_64": (crowd, partial(crowd.mixed, n_domains=MIXED)),
            "mixed_1000": (crowd, partial(crowd.mixed, n_domains=options.n_registered)),
            "paged": (paged, partial(paged.popular, alpha=options.alpha)),
            "plain": (plain, plain.single),
            "quick_gelu": (quick, quick.single),
            "together": (Feeder(together, crowd.stacks, self._pictures, crowd.rng), crowd.single),
        }

    def batches_per_turn(self, n_rows: int, per_s: float) -> int:
        """How many batches make a turn at a rate in images per second, as many for every runner."""
        wanted = round(TURN_S * per_s / (n_rows * self.n_runners))
        return self.n_runners * max(1, min(BATCHES_PER_TURN[self.device], wanted))

    def engine_way(self, name: str, n_rows: int, n_batches: int) -> Callable[[], None]:
        """A turn of the engine, with fresh rows each time."""
        feeder, draw = self._draws[name]

        def turn() -> None:
            self._loop.run(run_batches(feeder.engine, [draw(n_rows) for _ in range(n_batches)]))

        return turn

    def open_clip_way(self, backbone: Backbone, n_rows: int, n_batches: int) -> Callable[[], None]:
        """A turn of the plain library."""
        library = OpenClip(backbone, self.options.n_classes)
        images = library.images(self._pictures, n_rows)

        def turn() -> None:
            for _ in range(n_batches):
                library.answer(images)

        return turn

    def products_way(self, n_rows: int, n_batches: int, *, in_slices: bool = False) -> Products:
        """The model's matrix products alone, as many batches of them, side by side where batches are."""
        backbone, n_prompts = self.backbone, self.options.shape().n_tokens
        n_threads = max(1, torch.get_num_threads() // self.n_runners)
        one = forward_products(
            backbone, n_rows, linears=self.linears, n_prompts=n_prompts, n_threads=n_threads, in_slices=in_slices
        )
        return self._repeated([one] * self.n_runners, n_batches)

    def square_way(self, n_times: int) -> Products:
        """One large square product, so many times: what the device can do at most."""
        side = SQUARE[self.device]

        def product() -> Products:
            left, right, out = (
                torch.randn(side, side, device=self.backbone.device).to(self.backbone.dtype) for _ in range(3)
            )
            return Products(lambda: torch.mm(left, right, out=out), 2 * side**3)

        return self._repeated([product() for _ in range(self.n_runners)], n_times)

    def _repeated(self, side_by_side: Sequence[Products], n_in_all: int) -> Products:
        """A turn of products, one kind per runner; where there are several each runs on a core of its own."""
        n_times = n_in_all // len(side_by_side)

        def repeat(products: Products) -> None:
            for _ in range(n_times):
                products.run()

        def turn() -> None:
            if self._cores is None:
                repeat(side_by_side[0])
            else:
                list(self._cores.map(repeat, side_by_side))
            if self.device == "cuda":
                torch.cuda.synchronize()

        return Products(turn, sum(products.operations for products in side_by_side) * n_times)

    def operations_per_image(self) -> dict[str, float]:
        """Multiplications and additions of one image: with prompts, without, and in open_clip's own forward.

        The served tower is counted in float64, where it takes torch's plain operators, which torch can count.
        """
        options = self.options
        backbone = load_backbone(options.backbone, random_seed=options.weights_seed, dtype=torch.float64)
        tower = FusedImageTower(backbone)
        library = OpenClip(self.precise, options.n_classes)
        images = library.images(self._pictures, 1)
        pixels = torch.from_numpy(self._pictures[:1])
        depth = min(options.shape().depth, backbone.n_vision_layers)
        prompts = torch.zeros(depth, options.shape().n_tokens, backbone.vision_width, dtype=torch.float64)
        return {
            "prompted": float(operations(lambda: tower(pixels, join_groups([prompts])))),
            "plain": float(operations(lambda: tower(pixels, None))),
            "open_clip": float(operations(lambda: library.answer(images))),
        }

    def breakdown(self, n_rows: int) -> dict[str, float]:
        """Shares of a forward's time by kind of operator, prompts included; on the threads that a batch takes."""
        tower = FusedImageTower(self.backbone, self.linears)
        pixels = torch.from_numpy(self._pictures[np.arange(n_rows) % len(self._pictures)]).to(self.backbone.device)
        shape = self.options.shape()
        depth = min(shape.depth, self.backbone.n_vision_layers)
        prompts = torch.zeros(depth, shape.n_tokens, self.backbone.vision_width).to(pixels.device, self.backbone.dtype)
        grid = join_groups([prompts])
        if self._cores is not None:
            return self._cores.submit(shares, lambda: tower(pixels, grid), self.device).result()
        return shares(lambda: tower(pixels, grid), self.device)

    def device_ms(self) -> list[float]:
        """Milliseconds of a batch of one row on a CUDA device, by the device's own clock.

        From the first step that is sent to the last one that is done: what the host takes in between counts, too.
        """
        stack = self._draws["single"][0].stacks[0]
        pixels = torch.from_numpy(self._pictures[:1]).to(self.backbone.device)
        found = []
        with torch.cuda.device(self.backbone.device):
            for _ in range(N_DEVICE_TURNS):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                start.record()
                self.roomy.encode_images(pixels, [stack])
                end.record()
                end.synchronize()
                found.append(start.elapsed_time(end))
        return found[N_DEVICE_TURNS // 2 :]

    def close(self) -> None:
        """Let threads and loop go."""
        for engine in self._engines:
            engine.close()
        if self._cores is not None:
            self._cores.shutdown()
        self._loop.close()

    def _feeder(
        self, engine: Engine, model: PromptedClip, n_domains: int, shape: BundleShape, console: Console
    ) -> Feeder:
        seed = self.options.seed
        stacks = self._loop.run(register(engine, model.backbone, n_domains, shape, console, seed=seed))
        return Feeder(engine, stacks, self._pictures, np.random.default_rng(seed))


def in_bank(model: PromptedClip, n_slots: int, *, num_streams: int = 0) -> PromptedClip:
    """The same backbone and forward over a bank of so many slots, with as many batches at once as before or as said."""
    return PromptedClip(
        model.backbone,
        image_tower=model.image_tower,
        bank_slots=n_slots,
        num_streams=num_streams or model.num_streams,
    )


def sweep(
    bench: EngineBench,
    way: Callable[[int, int], Callable[[], None]],
    sizes: Sequence[int],
    *,
    longest_s: float = math.inf,
) -> dict[int, float]:
    """Images per second of each batch size, the better of two turns behind a batch to warm up, if that is quick.

    Args:
        bench: says how many batches make a turn.
        way: a turn, by the size of its batches and their number.
        sizes: to try, the smallest first.
        longest_s: a batch of every runner may take; the first size that takes longer and those behind it are left out.
    """
    turns: dict[int, Callable[[], None]] = {}
    n_images: dict[int, int] = {}
    warm_up_s: dict[int, float] = {}
    for n_rows in sizes:
        started_s = time.perf_counter()
        way(n_rows, bench.n_runners)()
        taken_s = time.perf_counter() - started_s
        if turns and taken_s > longest_s:
            break
        warm_up_s[n_rows] = taken_s
        n_batches = bench.batches_per_turn(n_rows, n_rows * bench.n_runners / taken_s)
        turns[n_rows], n_images[n_rows] = way(n_rows, n_batches), n_rows * n_batches
    taken = in_turn(turns, budget_s=0, fewest=1)
    again = in_turn({n: turn for n, turn in turns.items() if warm_up_s[n] < TURN_S}, budget_s=0, fewest=1)
    return {n: n_images[n] / min(taken[n] + again.get(n, [])) for n in turns}


def best(rates: Mapping[int, float]) -> int:
    """The smallest size that is nearly as fast as the fastest: the rest is noise, and turns get shorter."""
    return min(n_rows for n_rows, rate in rates.items() if rate >= NEARLY * max(rates.values()))
