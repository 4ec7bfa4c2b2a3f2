"""How long does a training step take, how much memory, and how near is that to the minimum?

    python benchmarks/training_step.py --quick            # 2,000 genes, few steps: under 50 s
    python benchmarks/training_step.py                    # 3 minutes on 2 cores
    python benchmarks/training_step.py --device cuda      # 4 minutes on one card

On the CPU: medians of the library's step and the textbook's (textbook.py) at 512 cells, 5
particles, 100 latents and 400 hidden units, taken in turn so that both see the same load. Peak
memory is what a separate process needs beyond its data, model and optimizer. The floor is the
decoder's last product alone, forward and backward.

On a CUDA device: data of the size of Norman and of Replogle are simulated on the GPU. Printed are
the rates of the GPU, the error of value and gradients against double precision, the time of the
step in its variants with the bound they reach, and the time of the papers' trainings. The floor is
derived in `floor`.
Expected: README, "Results".
"""

from __future__ import annotations

import argparse
import os

from samsvae_core.system.machine import is_busy

if is_busy():  # as `samsvae` does, before torch starts threads
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import signal
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import scipy.sparse as sp
import textbook
import torch
from torch import Tensor
from torch.nn.functional import linear

from samsvae_core.models import bounds as inference
from samsvae_core.models import samsvae
from samsvae_core.models.bounds import elbo
from samsvae_core.models.device_rows import Batch, Cells, DenseRows, HostRows
from samsvae_core.models.likelihood import kernels_work, nb_log_prob, plain_log_prob
from samsvae_core.models.samsvae import SAMSVAE, ModelConfig
from samsvae_core.models.simulate import Design, random_model
from samsvae_core.training import checkpoint, loop
from samsvae_core.training.config import Progress, Stop, TrainConfig
from samsvae_core.training.loop import fit
from samsvae_core.training.steps import StepRunner, new_optimizer
from samsvae_core.training.validation import predictive_bound

PUBLISHED = {"mask_evidence": None, "mask_prior": 0.01}
DEPTH = 0.3  # mean count per gene and cell
TRAINING = TrainConfig(
    particles=5, learning_rate=3e-4, mask_learning_rate=3e-4, embedding_learning_rate=3e-4,
    final_learning_rate=1.0, dense=0.0, anneal=0.0, patience=10**9,
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """The size of a screen and of its model."""

    name: str
    n_cells: int
    n_genes: int
    n_perturbations: int
    n_latent: int
    steps: int  # steps of the published training
    goal: float  # seconds for these steps


NORMAN = Size("Norman", 111_000, 5000, 105, 200, 30_000, 60.0)
REPLOGLE = Size("Replogle", 118_641, 1187, 722, 100, 150_000, 240.0)
CPU_SIZE = Size("CPU", 1024, 2000, 100, 100, 0, 0.0)


class Screen(Cells):
    """Cells of a random SAMS-VAE, drawn and kept on a device."""

    def __init__(self, size: Size, device: torch.device, seed: int = 0, n_cells: int = 0) -> None:
        n_cells, self.device = n_cells or size.n_cells, device
        design = Design(
            n_genes=size.n_genes, n_perturbations=size.n_perturbations, n_latent=20, seed=7
        )
        generator = torch.Generator(device).manual_seed(seed)
        truth = random_model(design).to(device)
        effect = torch.randn(size.n_perturbations, 20, generator=torch.Generator().manual_seed(8))
        effect = (2 * effect * (effect.abs() > 1.5)).to(device)
        which = torch.randint(size.n_perturbations + 1, (n_cells,), device=device,
                              generator=generator)  # fmt: skip
        dosages = torch.zeros(n_cells, size.n_perturbations + 1, dtype=torch.uint8, device=device)
        dosages[torch.arange(n_cells, device=device), which] = 1
        dosages = dosages[:, :-1].contiguous()  # the last column is control
        blocks, totals = [], []
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for D in dosages.split(4096):
                z = torch.randn(len(D), 20, device=device) + D.float() @ effect
                depth = (
                    DEPTH * size.n_genes * torch.exp(0.3 * torch.randn(len(D), 1, device=device))
                )
                x = truth.decode(z[None], depth).sample()[0]
                totals.append(x.sum(1, keepdim=True))
                blocks.append(x.clamp_max(32_767).to(torch.int16))
        counts = torch.cat(blocks)
        self.library = torch.cat(totals)
        if device.type == "cpu":
            self.counts = HostRows(sp.csr_matrix(counts.numpy().astype(np.float32)))
            self.dosages = HostRows(sp.csr_matrix(dosages.numpy().astype(np.float32)))
        else:
            self.counts, self.dosages = DenseRows(counts), DenseRows(dosages)


def start(size: Size, cells: Cells) -> SAMSVAE:
    """Return a model standardised by some of these cells."""
    torch.manual_seed(0)
    config = ModelConfig(size.n_genes, size.n_perturbations, size.n_latent, **PUBLISHED)
    model = SAMSVAE(config).to(cells.device)
    batch = cells.batch(torch.arange(min(len(cells), 4096), device=cells.device))
    log_x = batch.x.log1p()
    model.fit_buffers(log_x.mean(0), log_x.std(0), batch.D.sum(0), len(cells))
    return model


# On the CPU


def on_the_cpu(quick: bool) -> None:
    print(f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("512 cells, 5 particles, 100 latents, 400 hidden units; medians, seconds a step")
    print(f"{'genes':>6} {'textbook':>9} {'library':>9} {'times':>6} {'floor':>7} "
          f"{'textbook MB':>12} {'library MB':>11} {'share':>6}", flush=True)  # fmt: skip
    for n_genes in (2000,) if quick else (2000, 5000):
        size = replace(CPU_SIZE, n_genes=n_genes)
        seconds = times_in_turn(size, 3 if quick else 7)
        peaks = [peak_memory(size, name) for name in ("textbook", "library")]
        slow, fast, least = seconds
        print(f"{n_genes:6,} {slow:9.3f} {fast:9.3f} {slow / fast:6.1f} {least:7.3f} "
              f"{peaks[0]:12,.0f} {peaks[1]:11,.0f} {peaks[1] / peaks[0]:6.2f}",
              flush=True)  # fmt: skip


def times_in_turn(size: Size, repeats: int) -> list[float]:
    """Return median seconds of a textbook step, a library step and the decoder's last product."""
    cells = Screen(size, torch.device("cpu"))
    what = [step_of(name, size, cells) for name in ("textbook", "library")]
    what.append(last_product(size))
    seconds: list[list[float]] = [[], [], []]
    for repeat in range(repeats + 1):
        for run, kept in zip(what, seconds, strict=True):
            began = time.perf_counter()
            run()
            if repeat:  # the first is warm-up
                kept.append(time.perf_counter() - began)
    return [statistics.median(kept) for kept in seconds]


def step_of(name: str, size: Size, cells: Cells) -> Callable[[], object]:
    """Return a training step of 512 random cells, of either kind."""
    model = start(size, cells)
    optimizer, config = new_optimizer(model, TRAINING), replace(TRAINING, steps=10**6)
    if name == "library":
        steps = StepRunner(model, optimizer, cells, config)
        return lambda: steps.take(draw(cells, config.batch_size), 1)
    return lambda: textbook.step(
        model, optimizer, cells.batch(draw(cells, config.batch_size)), len(cells), config
    )


def draw(cells: Cells, n: int) -> Tensor:
    return torch.randint(len(cells), (n,), device=cells.device)


def last_product(size: Size) -> Callable[[], object]:
    rows = TRAINING.particles * TRAINING.batch_size
    hidden, weight = torch.randn(rows, 400), torch.randn(size.n_genes, 400)
    slope = torch.randn(rows, size.n_genes)
    return lambda: (hidden @ weight.T, slope @ weight, slope.T @ hidden)


def peak_memory(size: Size, name: str) -> float:
    """Return the MB that steps need beyond what a process holds before the first."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(measured_memory, (size, name))


def measured_memory(size: Size, name: str) -> float:
    cells = Screen(size, torch.device("cpu"))
    run = step_of(name, size, cells)
    with patch.object(cells, "batch", lambda index: Cells.batch(cells, index[:8])):
        run()  # loads libraries and Adam's moments
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    for _ in range(2):
        run()
    return memory("VmHWM") - before


def memory(what: str) -> float:
    """Return the MB of this process, now (VmRSS) or at most (VmHWM), on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(what)) / 1024


# On a CUDA device


def on_a_card(device: torch.device, sizes: list[Size], seconds: float, steps: int) -> None:
    """Run every part separately; a failure is reported, and the rest continues."""
    rates: dict[str, float] = {}
    with part("the card"):
        rates |= card(device)
    with part("errors"):
        errors(device, sizes)
    for size in sizes:
        with part(f"size of {size.name}"):
            cells = Screen(size, device)
            n_validation = size.n_cells // 10
            validation = Screen(size, device, seed=1, n_cells=n_validation)
            filled = [float((cells.batch(draw(cells, 512)).x > 0).float().mean())]
            print(f"{size.name}: {len(cells):,} cells x {size.n_genes:,} genes, "
                  f"{100 * filled[0]:.0f} % of counts not 0, highest count in a batch "
                  f"{int(cells.batch(draw(cells, 512)).x.max())}")  # fmt: skip
            with part("floor"):
                floor(size, rates)
            with part("variants"):
                variants(size, cells, validation, steps)
            with part("kernels"):
                kernels_of_a_step(size, cells)
            with part("the published training"):
                whole_training(size, cells, validation, seconds)
    with part("compiled"):  # last: it takes a minute
        cells = Screen(sizes[0], device)
        validation = Screen(sizes[0], device, seed=1, n_cells=2048)
        variants(sizes[0], cells, validation, steps, only=("compiled",))


BEGAN = time.perf_counter()


@contextmanager
def part(title: str) -> Iterator[None]:
    print(f"\n== {title} (at {time.perf_counter() - BEGAN:.0f} s)", flush=True)
    try:
        yield
    except Exception:  # noqa: BLE001 - the other parts still run
        print(traceback.format_exc(limit=-6), flush=True)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(run: Callable[[], object], device: torch.device, n: int, blocks: int = 5) -> float:
    """Return the median over blocks of the time of one of `n` runs, after a warm-up."""
    for _ in range(5):
        run()
    found = []
    for _ in range(blocks):
        synchronize(device)
        began = time.perf_counter()
        for _ in range(n):
            run()
        synchronize(device)
        found.append(1e3 * (time.perf_counter() - began) / n)
    return statistics.median(found)


def card(device: torch.device) -> dict[str, float]:
    """Return measured bytes copied (read and written) and product operations per second."""
    small = device.type == "cpu"
    if not small:
        print(torch.cuda.get_device_name(device), f"torch {torch.__version__}",
              f"kernels {kernels_work()}")  # fmt: skip
    source = torch.randn(1 << (20 if small else 28), device=device)
    target = torch.empty_like(source)
    copying = milliseconds(partial(target.copy_, source), device, 10)
    rates = {"copy": 2 * 4 * len(source) / copying * 1e3}
    print(f"copy {rates['copy'] / 1e12:.2f} TB/s")
    del source, target
    rows, hidden, genes = 2560, 400, 5000
    n = 256 if small else 8192
    for name, precision, dtype in (
        ("fp32", "highest", torch.float32),
        ("tf32", "high", torch.float32),
        ("bf16", "highest", torch.bfloat16),
    ):
        with products(precision):
            square = torch.randn(n, n, device=device, dtype=dtype)
            product = partial(torch.mm, square, square)
            rates[name] = 2 * n**3 / milliseconds(product, device, 5) * 1e3
            h = torch.randn(rows, hidden, device=device, dtype=dtype)
            w = torch.randn(genes, hidden, device=device, dtype=dtype)
            g = torch.randn(rows, genes, device=device, dtype=dtype)
            found = [
                milliseconds(partial(torch.mm, *pair), device, 3 if small else 50)
                for pair in ((h, w.T), (g, w), (g.T, h))
            ]
        print(f"{name} {rates[name] / 1e12:.0f} TFLOP/s; the decoder's last product and its two "
              f"backward: {' + '.join(f'{f:.3f}' for f in found)} ms", flush=True)  # fmt: skip
    return rates


@contextmanager
def products(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def errors(device: torch.device, sizes: list[Size]) -> None:
    """Print relative errors of values and gradients against double precision on the CPU."""
    for size, more, dtype in [(s, m, torch.float32) for s in sizes for m in (0, 1)] + [
        (sizes[0], 0, torch.bfloat16)
    ]:
        torch.manual_seed(1)
        logits = 2 * torch.randn(3, 33, size.n_genes + more).to(dtype)
        log_r = torch.randn(size.n_genes)
        x = torch.poisson(30 * torch.rand(33, size.n_genes) ** 8)
        log_library = (2 * x.sum(1, keepdim=True)).log()
        weight = torch.randn(3, 33)
        exact = likelihood_and_slopes(
            plain_log_prob, *(a.double() for a in (logits, log_r, log_library, x, weight))
        )
        found = likelihood_and_slopes(
            nb_log_prob, *(a.to(device) for a in (logits, log_r, log_library, x, weight))
        )
        print(f"log_prob, {size.n_genes} + {more} outcomes, {dtype}: value, to logits, to log r "
              + ", ".join(f"{relative(f, e):.1e}" for f, e in zip(found, exact, strict=True)),
              flush=True)  # fmt: skip
    size = replace(sizes[0], n_cells=256)
    cpu = torch.device("cpu")
    cells = Screen(size, cpu)
    batch = cells.batch(torch.arange(64))
    model = start(size, cells)
    exact = loss_and_slopes(model, batch, torch.float64, cpu)
    for precision, dtype in (("highest", None), ("high", None), ("highest", torch.bfloat16)):
        with products(precision), autocast(device, dtype):
            found = loss_and_slopes(model, batch, torch.float32, device)
        print(f"bound and all gradients, products {dtype or precision}: "
              + ", ".join(f"{relative(f, e):.1e}" for f, e in zip(found, exact, strict=True)),
              flush=True)  # fmt: skip


def relative(found: Tensor, exact: Tensor) -> float:
    return ((found.double().cpu() - exact).norm() / exact.norm()).item()


def likelihood_and_slopes(
    function: Callable[..., Tensor], logits: Tensor, log_r: Tensor, library: Tensor, x: Tensor,
    weight: Tensor,
) -> list[Tensor]:  # fmt: skip
    logits, log_r = logits.clone().requires_grad_(), log_r.clone().requires_grad_()
    value = function(logits, log_r, library, x)
    (value * weight).sum().backward()
    return [value.detach(), logits.grad, log_r.grad]


def loss_and_slopes(
    model: SAMSVAE, batch: Batch, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Return the bound and its gradient at the same draws on any device and in any precision."""
    copied = SAMSVAE(model.config)
    copied.load_state_dict(model.state_dict())
    copied = copied.to(device, dtype)
    batch = Batch(*(a.to(device, dtype) for a in batch[:3]))
    generator = torch.Generator().manual_seed(3)

    def normal(shape: Any, **_: Any) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    def uniform(*shape: int, **_: Any) -> Tensor:
        return torch.empty(shape, dtype=torch.float64).uniform_(generator=generator).to(
            device, dtype)  # fmt: skip

    with (
        patch("torch.distributions.normal._standard_normal", normal),
        patch("torch.rand", uniform),
    ):
        bound = elbo(copied, batch, len(batch.x), 5).total
    bound.backward()
    slopes = [p.grad.double().flatten() for p in copied.parameters() if p.grad is not None]
    return [bound.detach(), torch.cat(slopes)]


def autocast(device: torch.device, dtype: torch.dtype | None) -> Any:
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def floor(size: Size, rates: dict[str, float]) -> float:
    """Return the least milliseconds of a step whose matrix products are separate kernels.

    Bytes: the S x N x G logits are written and read once, their gradient written once and read
    twice, 4 bytes each; the counts are read once in 2 bytes, written and read three times in 4
    (input, operand of its two products, likelihood); of the parameters, the gradient is written,
    then gradient, parameter and two moments are read and three of them written. Operations: three
    products of the decoder's last layer and two of the encoder's first, two per multiplication.
    """
    rows, hidden = TRAINING.particles * TRAINING.batch_size, 400
    n_parameters = sum(p.numel() for p in SAMSVAE(
        ModelConfig(size.n_genes, size.n_perturbations, size.n_latent)).parameters())  # fmt: skip
    counts = TRAINING.batch_size * size.n_genes
    n_bytes = 5 * 4 * rows * size.n_genes + (2 + 4 * 4) * counts + 8 * 4 * n_parameters
    operations = 2 * hidden * (3 * rows * size.n_genes + 2 * counts)
    moving, computing = n_bytes / rates["copy"] * 1e3, operations / rates["tf32"] * 1e3
    least = max(moving, computing)
    print(f"floor: {n_bytes / 1e6:.0f} MB moved, {moving:.3f} ms; {operations / 1e9:.1f} GFLOP, "
          f"{computing:.3f} ms in tf32: {least:.3f} ms", flush=True)  # fmt: skip
    rates[size.name] = least
    return least


def half_last_product(layer: torch.nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda h: linear(h.bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16())


def variants(
    size: Size, cells: Cells, validation: Cells, steps: int, only: tuple[str, ...] = ()
) -> None:
    """Print milliseconds per step, memory, and the bound after equal steps from the same start."""
    table: dict[str, dict[str, Any]] = {
        "textbook": {"textbook": True, "precision": "highest"},
        "plain, fp32": {"plain": True, "precision": "highest"},
        "kernels, fp32": {"precision": "highest"},
        "kernels, tf32": {},
        "plain, tf32, graph": {"plain": True, "graph": True},
        "kernels, fp32, graph": {"graph": True, "precision": "highest"},
        "kernels, tf32, graph": {"graph": True},
        "kernels, tf32, graph again": {"graph": True},
        "kernels, last product bf16, graph": {"graph": True, "half": True},
        "kernels, all bf16, graph": {"graph": True, "autocast": torch.bfloat16},
    }
    if only:
        table = {"kernels, tf32, graph": {"graph": True},
                 "kernels, tf32, graph, compiled": {"graph": True, "compiled": True}}  # fmt: skip
    print(f"{'':36} {'ms/step':>8} {'of textbook':>11} {'peak MB':>8} {'s to start':>10} "
          f"{'bound':>9} {'validation':>10}")  # fmt: skip
    slowest = None
    for name, options in table.items():
        try:
            took, peak, began, bounds = variant(size, cells, validation, steps, **options)
        except Exception as error:  # noqa: BLE001 - the other variants still run
            print(f"{name:36} failed: {' '.join(str(error).split())[:300]}", flush=True)
            continue
        slowest = slowest or took
        print(f"{name:36} {took:8.3f} {slowest / took:11.1f} {peak:8,.0f} {began:10.1f} "
              f"{bounds[0]:9.2f} {bounds[1]:10.2f}", flush=True)  # fmt: skip


def variant(
    size: Size, cells: Cells, validation: Cells, n_steps: int, textbook_step: bool = False,
    **options: Any,
) -> tuple[float, float, float, tuple[float, float]]:  # fmt: skip
    device = cells.device
    is_textbook = options.get("textbook", textbook_step)
    config = replace(TRAINING, steps=10**6)
    with ExitStack() as stack:
        stack.enter_context(products(options.get("precision", "high")))
        if options.get("plain"):
            stack.enter_context(patch.object(samsvae, "nb_log_prob", plain_log_prob))
        bound_of = inference.elbo
        if options.get("compiled"):
            uncompiled = torch.compiler.disable(nb_log_prob)
            stack.enter_context(patch.object(samsvae, "nb_log_prob", uncompiled))
            stack.enter_context(time_limit(90))
            bound_of = torch.compile(bound_of, dynamic=False)
        if options.get("autocast"):
            whole = bound_of

            def bound_of(*arguments: Any) -> Any:
                with autocast(device, options["autocast"]):
                    return whole(*arguments)

        stack.enter_context(patch.object(loop, "elbo", bound_of))
        model = start(size, cells)
        if options.get("half"):
            model.decoder.out.forward = half_last_product(model.decoder.out)
        optimizer = new_optimizer(model, config)
        steps = StepRunner(model, optimizer, cells, config)
        torch.manual_seed(5)
        n_timed = n_steps if not is_textbook else max(3, n_steps // 40)
        order = torch.randint(len(cells), (64, config.batch_size), device=device)
        sums = torch.zeros(4, device=device)
        count = 0

        def run() -> None:
            nonlocal count
            index = order[count % 64]
            count += 1
            if is_textbook:
                textbook.step(model, optimizer, cells.batch(index), len(cells), config)
            elif options.get("graph"):
                sums.copy_(steps.take(index, 1))
            else:
                sums.copy_(steps.run(index, steps.anneal))

        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            held = torch.cuda.memory_allocated(device)
        began = time.perf_counter()
        for _ in range(5):
            run()
        synchronize(device)
        began = time.perf_counter() - began
        took = milliseconds(run, device, n_timed)
        peak = (
            (torch.cuda.max_memory_allocated(device) - held) / 1e6 if device.type == "cuda" else 0
        )
        bounds = (float("nan"), float("nan"))
        if not is_textbook:
            bounds = sums[0].item(), predictive_bound(model, validation, 2)
    return took, peak, began, bounds


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def out_of_time(*_: object) -> None:
        raise TimeoutError(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def kernels_of_a_step(size: Size, cells: Cells) -> None:
    """Print where the time of a recorded step goes."""
    from torch.profiler import ProfilerActivity, profile

    device = cells.device
    model = start(size, cells)
    config = replace(TRAINING, steps=10**6)
    steps = StepRunner(model, new_optimizer(model, config), cells, config)
    cuda = device.type == "cuda"
    with products("high"):
        for _ in range(8):
            steps.take(draw(cells, config.batch_size), 1)
        synchronize(device)
        activities = [ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]
        with profile(activities=activities) as found:
            for _ in range(10):
                steps.take(draw(cells, config.batch_size), 1)
            synchronize(device)
    events = found.key_averages()
    spent = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = sorted(events, key=lambda e: -getattr(e, spent))
    total, n = sum(getattr(e, spent) for e in events), sum(e.count for e in events)
    print(f"{total / 10:.0f} microseconds in {n / 10:.0f} kernels a step; the longest:")
    for event in events[:28]:
        print(f"{getattr(event, spent) / 10:8.1f} us {event.count / 10:6.1f} x {event.key[:110]}")


def whole_training(size: Size, cells: Cells, validation: Cells, seconds: float) -> None:
    """Run the published training through `fit`, with its checkpoints, cut at `seconds`."""
    model = start(size, cells)
    config = replace(TRAINING, steps=size.steps)
    spent = {"validation": 0.0, "checkpoint": 0.0, "writing": 0.0}
    began = time.perf_counter()
    last: list[Progress] = []

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            synchronize(cells.device)
            at = time.perf_counter()
            result = function(*arguments)
            spent[name] += time.perf_counter() - at
            return result

        return run

    def listen(progress: Progress) -> None:
        last[:] = [progress]
        if time.perf_counter() - began > seconds:
            raise Stop

    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(loop, "predictive_bound", timed("validation", predictive_bound)),
        patch.object(loop, "checkpoint", timed("checkpoint", checkpoint.checkpoint)),
        patch.object(loop, "atomic_write", timed("writing", checkpoint.atomic_write)),
        suppress(Stop),
    ):
        fit(model, cells, validation, config, Path(folder), listen)
    took = time.perf_counter() - began
    progress = last[0]
    whole = took * size.steps / progress.step
    print(f"{progress.step:,} steps, {progress.epoch} epochs in {took:.1f} s "
          f"({', '.join(f'{name} {value:.1f}' for name, value in spent.items())}): "
          f"{size.steps:,} steps in {whole:.0f} s (goal {size.goal:.0f}); bound "
          f"{progress.bound:.2f}, validation {progress.validation_bound:.2f}",
          flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="the parts of a card, small")
    given = parser.parse_args()
    device = torch.device(given.device)
    if given.tiny:
        sizes = [Size("tiny", 3000, 300, 10, 12, 60, 1.0), Size("other", 1500, 111, 20, 8, 60, 1.0)]
        on_a_card(device, sizes, 5.0, 4)
    elif device.type == "cuda":
        on_a_card(device, [NORMAN, REPLOGLE], 15.0 if given.quick else 40.0, 200)
    else:
        on_the_cpu(given.quick)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
