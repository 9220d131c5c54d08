"""A training step of tiny models on one thread: milliseconds and FLOP/s by M times tokens. `python -m bench.step`"""

import time

import torch

from model.kernels import choose
from model.mesh import Mesh
from model.transformer import Stage
from model.zero import AdamW
from planner.shape import make_shape
from specs.files import from_catalog
from specs.law import Family
from specs.optim import OptimSpec

SHAPES = ((16, 2), (32, 2), (64, 4), (96, 8))
"""(width, sequences per step)."""
STEPS = 60


def step_seconds(width: int, batch: int, precision: str) -> tuple[float, float]:
    """Lower decile of the CPU seconds of a step, and the FLOP/s that makes."""
    shape = make_shape(from_catalog(Family, "tiny", None), width, 2, 256)
    stage = Stage(shape, precision=precision, mesh=Mesh(), kernels=choose("auto", "cpu"), device="cpu")
    optimizer = AdamW(
        stage, Mesh().dp, OptimSpec(steps=STEPS, batch_sequences=batch, peak_lr=1e-3, warmup_steps=1)
    )
    optimizer.start(0)
    tokens = torch.randint(256, (batch, shape.context + 1), generator=torch.Generator().manual_seed(0))
    seconds = []
    for _ in range(STEPS):
        begin = time.process_time()
        stage.loss(tokens[:, :-1], tokens[:, 1:], batch * shape.context).backward()
        optimizer.step(1e-3)
        seconds.append(time.process_time() - begin)
    best = sorted(seconds)[STEPS // 10]
    return best, shape.flop_per_token * batch * shape.context / best


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    for precision in ("fp32", "bf16"):
        for width, batch in SHAPES:
            seconds, rate = step_seconds(width, batch, precision)
            print(
                f"{precision} width {width:3d} batch {batch}: {seconds * 1e3:7.2f} ms {rate / 1e9:6.1f} GFLOP/s"
            )


if __name__ == "__main__":
    main()
