"""One small example of the run for each operation, by which an implementation proves that it works here.

A compiler that is missing, a build for another GPU, a head size that is refused, results that are wrong or do not
repeat: all of it shows before the run begins, as a reason. The example has the run's own heads, head size, context,
widths, vocabulary and precision, and few rows. torch's implementation says what is right.

R rows    B batch    S sequence    T query heads    G key and value heads    K head size    V vocabulary
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.kernels.backend import KernelShape, UnavailableError
from model.kernels.interfaces import Positions

_ROWS = 48
"""Rows of an example where rows do not depend on each other; no multiple of a power of two beyond 16."""
_ROTARY_ROWS = 200
"""The same for rotary positions, which go over several programs."""
_PARTS = 8
"""Parts of a sequence that are compared by themselves: attention's results get smaller along it."""
_BOUNDS = {torch.bfloat16: 2.0**-5, torch.float32: 2.0**-12}
"""Largest error relative to torch's result: 16 roundings of bf16, 2^-9 each. In fp32 a fast exponential and another
order of sums are far below, a broken kernel is far above."""
_NORM_EPS, _ADAM_EPS = 1e-5, 1e-8


@dataclass(frozen=True)
class Example:
    """What an implementation is tried on."""

    shape: KernelShape
    dtype: torch.dtype
    device: str
    deterministic: bool

    def drawn(self, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers, the same at each call of the same size."""
        numbers = torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))
        return numbers.to(self.device, dtype or self.dtype)


def try_out(operation: str, function: Any, reference: Any, example: Example) -> None:
    """UnavailableError where the function fails, differs from the reference, or does not repeat itself.

    Only where `deterministic` is asked for do its results have to repeat bit by bit.
    """
    run = _RUNS[operation]
    try:
        ours, again = run(function, example), run(function, example)
        repeats = all(torch.equal(*pair) for pair in zip(ours, again, strict=True))
        if example.device == "cuda":
            torch.cuda.synchronize()  # a kernel's error may arrive late
    except Exception as error:  # the compiler's, the driver's, an assertion: each has its own exception
        text = (str(error).strip().splitlines() or [""])[0]
        raise UnavailableError(f"{type(error).__name__}: {text}" if text else type(error).__name__) from error
    if operation == "core_attention":
        reference = _by_documents(reference)
    wrong = (_relative(*pair) for pair in zip(ours, run(reference, example), strict=True))
    off = next((one for one in wrong if not one <= _BOUNDS[example.dtype]), 0.0)
    if off:
        raise UnavailableError(f"its results differ from torch's (relative error {off:.2g})")
    if example.deterministic and not repeats:
        raise UnavailableError("its results differ from call to call")


def _relative(ours: Tensor, theirs: Tensor) -> float:
    """Distance of the results, relative to torch's; NaN where ours are not finite."""
    difference, size = (one.double().norm() for one in (ours.double() - theirs.double(), theirs))
    return float(difference / size) if float(difference) else 0.0


def _norm(kernel: Any, example: Example) -> Sequence[Tensor]:
    width = example.shape.width
    x, delta, dy, ds = (example.drawn(_ROWS + turn, width)[:_ROWS] for turn in range(4))
    gain = example.drawn(width)
    summed = torch.zeros(width, device=example.device)
    total, y, saved = kernel.forward(x, delta, gain, _NORM_EPS)
    dx = kernel.backward(dy, ds, saved, gain, summed)
    return total, y, dx, summed


def _gate(kernel: Any, example: Example) -> Sequence[Tensor]:
    inner, saved = kernel.forward(example.drawn(_ROWS, 2 * example.shape.inner))
    dprojected, again = kernel.backward(example.drawn(_ROWS, example.shape.inner), saved)
    return inner, dprojected, again


def _cross_entropy(kernel: Any, example: Example) -> Sequence[Tensor]:
    logits_RV = example.drawn(_ROWS, example.shape.vocab)
    column_R = (
        torch.arange(_ROWS, device=example.device) * example.shape.vocab // (_ROWS - 1)
    )  # the last is outside
    found = kernel.measure(logits_RV, column_R)
    peak, total, target_logit = (one.clone() for one in found[:3])
    kernel.differentiate(logits_RV, column_R, found, 1 / (_ROWS * total), 1 / _ROWS)
    return peak, total, target_logit, logits_RV


def _rotary(rotate: Any, example: Example) -> Sequence[Tensor]:
    sequence, size = min(_ROTARY_ROWS, example.shape.context), example.shape.head_size
    qkv_BSNK = example.drawn(1, sequence, example.shape.heads + 2 * example.shape.kv_heads, size)
    x_BSNK = qkv_BSNK[:, :, : example.shape.heads + example.shape.kv_heads]
    angle = example.drawn(sequence, size // 2, dtype=torch.float32)
    tables = (torch.cat(halves, 1) for halves in ((angle.cos(), angle.cos()), (-angle.sin(), angle.sin())))
    cos_KS, sin_KS = (table.to(example.dtype).t() for table in tables)
    at = Positions(cos_KS, sin_KS, angle)
    rotate(x_BSNK, at, 1, x_BSNK)  # in place, within the projection, as forward does
    turned_BSNK = torch.empty_like(qkv_BSNK)
    rotate(x_BSNK.contiguous(), at, -1, turned_BSNK[:, :, : x_BSNK.shape[2]])  # as backward does
    return qkv_BSNK, turned_BSNK[:, :, : x_BSNK.shape[2]]


def _core_attention(attend: Any, example: Example) -> Sequence[Tensor]:
    """Outputs and gradients of whole sequences and, where the run masks documents, of two in one."""
    shape, S = example.shape, example.shape.context
    found: list[Tensor] = []
    for cut in (None, S // 3) if shape.masked else (None,):
        start_BS = None
        if cut is not None:
            place_S = torch.arange(S, device=example.device)
            start_BS = ((place_S >= cut) * cut).unsqueeze(0)
        split = [shape.heads, shape.kv_heads, shape.kv_heads]
        qkv_BSFK = example.drawn(1, S, sum(split), shape.head_size)
        with torch.enable_grad():
            q, k, v = (part.requires_grad_() for part in qkv_BSFK.split(split, dim=2))
            o_BSTK = attend(q, k, v, start_BS, None)
            gradients = torch.autograd.grad(o_BSTK, (q, k, v), example.drawn(1, S + 1, *q.shape[2:])[:, :S])
        both_SX = torch.cat([one.detach().squeeze(0).flatten(1) for one in (o_BSTK, *gradients)], dim=1)
        found += both_SX.tensor_split(min(_PARTS, S))
    return found


def _by_documents(attend: Any) -> Any:
    """The same, each document by itself: a mask of the whole square would not fit long contexts."""

    def attend_each(
        q: Tensor, k: Tensor, v: Tensor, start_BS: Tensor | None, ends_N: Tensor | None
    ) -> Tensor:
        cut = 0 if start_BS is None else int(start_BS[0, -1])
        documents = (slice(first, last) for first, last in ((0, cut), (cut, q.shape[1])) if first < last)
        return torch.cat([attend(*(x[:, at] for x in (q, k, v)), None, None) for at in documents], dim=1)

    return attend_each


def _accumulate(accumulate: Any, example: Example) -> Sequence[Tensor]:
    gradient = torch.ones(_ROWS, example.shape.width, device=example.device)
    accumulate(gradient, example.drawn(2 * _ROWS, _ROWS), example.drawn(2 * _ROWS, example.shape.width))
    return (gradient,)


def _adamw(adamw: Any, example: Example) -> Sequence[Tensor]:
    size = _ROWS * example.shape.width
    weights, gradients = (example.drawn(size + turn, dtype=torch.float32)[:size] for turn in range(2))
    moments = torch.zeros(2, size, device=example.device)
    rounded = None if example.dtype == torch.float32 else torch.empty_like(weights, dtype=example.dtype)
    adamw(
        weights,
        gradients,
        *moments,
        rounded,
        step=1,
        lr=0.1,
        betas=(0.9, 0.95),
        weight_decay=0.1,
        eps=_ADAM_EPS,
        grad_scale=2.0,
    )
    return (weights, *moments) if rounded is None else (weights, *moments, rounded)


_RUNS: dict[str, Callable[[Any, Example], Sequence[Tensor]]] = {
    "norm": _norm,
    "gate": _gate,
    "cross_entropy": _cross_entropy,
    "rotary": _rotary,
    "core_attention": _core_attention,
    "accumulate": _accumulate,
    "adamw": _adamw,
}
