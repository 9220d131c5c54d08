"""Which implementation of each operation a run uses: decided once, from the setting and what works on the device."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F

from model.kernels import apex, flash, torch_cpu, torch_ops
from model.kernels.backend import (
    AbsentError,
    Candidate,
    Candidates,
    KernelShape,
    Offer,
    UnavailableError,
    function,
)
from model.kernels.fused_attention import fused_attention
from model.kernels.interfaces import Attention, CrossEntropy, ForwardBackward, Kernels, NormKernel, Positions
from model.kernels.trial import Example, try_out
from specs.model import ModelSpec

_CPU_CHUNK_LOGITS = 2**18
"""1 MiB in fp32, half of a server core's L2 cache."""
_GPU_CHUNK_LOGITS = 2**26
"""256 MiB in fp32: large enough that launching kernels costs nothing, and small beside a GPU's memory."""


SumOverRanks = Callable[[list[int]], list[int]]
"""Sums each number over all ranks, which call it together; one rank's are the sums themselves."""
SMALL = KernelShape(heads=2, kv_heads=2, head_size=64, context=128, width=128, inner=256, vocab=512)
"""What kernels are tried on where there is no model yet."""


def shape_of(spec: ModelSpec, tp: int, masked: bool = False) -> KernelShape:
    """What the kernels of one rank of a run work on; the first rank's share where the vocabulary does not divide."""
    heads, kv_heads, inner, vocab = (
        max(1, size // tp) for size in (spec.heads, spec.kv_heads, spec.ffn, spec.vocab)
    )
    return KernelShape(heads, kv_heads, spec.head_dim, spec.context, spec.width, inner, vocab, masked)


def choose(
    setting: str,
    device: str,
    precision: str = "bf16",
    shape: KernelShape = SMALL,
    *,
    deterministic: bool = True,
    sum_over_ranks: SumOverRanks = list,
) -> Kernels:
    """The implementations for a setting, one of `Execution.kernels`.

    A back end's name takes from it what it has, and the rest from torch; `auto` takes each operation from the fastest
    that works on this device. Each is first tried on a small example of this shape (trial.py), and taken where it works
    on all ranks, which call this together. Under `auto` the description of what is taken instead says what
    failed. `deterministic` asks for gradients that repeat bit by bit. ValueError for a name that does not exist, or a
    back end that cannot run here; the text says why.
    """
    if setting not in ("auto", "torch", *_BACK_ENDS):
        raise ValueError(f"unknown kernels {setting!r}; write auto, torch, {', '.join(_BACK_ENDS)}")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if setting in _BACK_ENDS and not on_gpu:
        raise ValueError(_refusal(setting, "they need a CUDA device"))
    if setting == "torch" or not on_gpu:
        return _assembled(_cpu() if device == "cpu" else _torch())
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    return _tried(setting, Example(shape, dtype, device, deterministic), precision, sum_over_ranks)


def _tried(setting: str, example: Example, precision: str, sum_over_ranks: SumOverRanks = list) -> Kernels:
    """The implementations that work on an example; see `choose`."""
    kinds = _FASTEST_FIRST if setting == "auto" else (setting,)
    trials, reference = _Trials(example, precision, sum_over_ranks), _torch()
    found = {
        operation: offer
        for operation in reference
        if (offer := trials.first_that_works(operation, [_BACK_ENDS[kind]() for kind in kinds])) is not None
    }
    if example.device == "cuda":
        torch.cuda.empty_cache()  # the model's memory need not be laid around the examples'
    missed = [reason for operation, reason in trials.failed.items() if operation not in found]
    if setting != "auto" and (missed or not found):
        raise ValueError(_refusal(setting, "; ".join(missed or trials.absent)))
    return _assembled(reference | found, trials.failed, tuple(trials.failed_here))


class _Trials:
    """Tries implementations on an example, with the same result on all ranks."""

    def __init__(self, example: Example, precision: str, sum_over_ranks: SumOverRanks) -> None:
        self._example, self._precision, self._sum_over_ranks = example, precision, sum_over_ranks
        self._right = {name: offer.function for name, offer in _torch().items()}
        self._right["accumulate"] = torch_ops.accumulate  # on any device
        self.failed: dict[str, str] = {}
        """By operation, what failed of it and why."""
        self.failed_here: list[str] = []
        """What failed on this rank and why, a line each."""
        self.absent: list[str] = []
        """Reasons of what is not there at all."""

    def first_that_works(self, operation: str, back_ends: list[Candidates]) -> Offer | None:
        """The best of an operation's implementations that works on all ranks; None where there is none."""
        failed: list[str] = []
        for candidate in (one for back_end in back_ends for one in back_end.get(operation, ())):
            offer, reason, absent = None, "", False
            try:
                offer = candidate.find(self._precision, self._example.deterministic)
                try_out(operation, offer.function, self._right[operation], self._example)
            except UnavailableError as error:
                reason, absent = str(error), isinstance(error, AbsentError)
            bad_ranks, absent_ranks, ranks = self._sum_over_ranks([bool(reason), absent, 1])
            if not bad_ranks:
                return self._with_failures(operation, offer, failed)
            if absent_ranks == ranks:
                self.absent.append(reason)
            else:
                failed.append(f"{candidate.name} failed ({reason or 'on another rank, whose log says why'})")
                if reason:
                    self.failed_here.append(f"{operation} by {failed[-1]}")
        self._with_failures(operation, None, failed)
        return None

    def _with_failures(self, operation: str, offer: Offer | None, failed: list[str]) -> Offer | None:
        if failed:
            self.failed[operation] = "; ".join(failed)
        return offer


def _refusal(setting: str, reason: str) -> str:
    return f"{setting} kernels cannot run here: {reason}; write kernels: auto or kernels: torch"


def positions(head_size: int, context: int, theta: float, dtype: torch.dtype, device: str) -> Positions:
    """Angles s theta^(-2i/K) (RoFormer, arXiv 2104.09864, Eq. 15), computed in fp64.

    On a CPU the sequence is innermost in memory, elsewhere the head size: as the kernels there read them.
    """
    frequency = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angle = torch.outer(frequency, torch.arange(context, dtype=torch.float64))
    cos_KS, sin_KS = torch.cat((angle.cos(), angle.cos())), torch.cat((-angle.sin(), angle.sin()))
    if device != "cpu":
        cos_KS, sin_KS = (table.t().contiguous().t() for table in (cos_KS, sin_KS))
    size = min(context, torch_cpu.BLOCK_ROWS)
    future_QQ = torch.full((size, size), -torch.inf).triu(1)
    return Positions(*(table.to(device, dtype) for table in (cos_KS, sin_KS, future_QQ)))


def _triton() -> Candidates:
    return {
        operation: (Candidate("triton", partial(_triton_offer, operation)),)
        for operation in ("rotary", "norm", "gate", "cross_entropy")
    }


def _triton_offer(operation: str, precision: str, deterministic: bool) -> Offer:
    function("triton", "jit")
    from model.kernels import triton_ops as calls  # imports triton, which not every machine has

    made = {
        "rotary": calls.rotate,
        "norm": NormKernel(calls.norm_forward, calls.norm_backward),
        "gate": ForwardBackward(calls.gate_forward, calls.gate_backward),
        "cross_entropy": CrossEntropy(0, calls.measure, calls.differentiate),
    }
    return Offer(made[operation], "ours, in Triton")


_BACK_ENDS: dict[str, Callable[[], Candidates]] = {
    "apex": apex.candidates,
    "triton": _triton,
    "flash-attn": flash.candidates,
}
"""By their names in `Execution.kernels`."""
_FASTEST_FIRST = ("flash-attn", "triton", "apex")
"""In which order `auto` tries what several have. Triton's norm adds the residual in the same pass, apex's does not."""


Offers = dict[str, Offer]
"""By operation."""


def _torch() -> Offers:
    """torch on a GPU."""
    text = "torch"
    return {
        "linear": Offer(F.linear, text),
        "rotary": Offer(torch_ops.rotate_heads, text),
        "core_attention": Offer(torch_ops.core_attention, "torch scaled_dot_product_attention"),
        "norm": Offer(NormKernel(torch_ops.norm_forward, torch_ops.norm_backward), text),
        "gate": Offer(ForwardBackward(torch_ops.gate_forward, torch_ops.gate_backward), text),
        "cross_entropy": Offer(
            CrossEntropy(_GPU_CHUNK_LOGITS, torch_ops.measure, torch_ops.differentiate),
            "torch, gradient in place of the logits",
        ),
        "accumulate": Offer(torch_ops.accumulate_cuda, "torch addmm into fp32"),
        "adamw": Offer(torch_ops.adamw, "torch _fused_adamw_"),
    }


def _cpu() -> Offers:
    """torch on a CPU: attention is one piece, positions included."""
    shared = {name: offer for name, offer in _torch().items() if name not in ("rotary", "core_attention")}
    ours = {
        "linear": Offer(torch_cpu.linear, "torch, rows innermost"),
        "attention": Offer(
            Attention(torch_cpu.attention_forward, torch_cpu.attention_backward), "torch, blocks of rows"
        ),
        "cross_entropy": Offer(
            CrossEntropy(_CPU_CHUNK_LOGITS, torch_ops.measure, torch_ops.differentiate),
            "torch, gradient in place of the logits",
        ),
        "accumulate": Offer(torch_ops.accumulate, "torch"),
    }
    return shared | ours


def _assembled(
    found: Offers, failed: Mapping[str, str] = MappingProxyType({}), failed_here: tuple[str, ...] = ()
) -> Kernels:
    """`failed` says by operation what could not be taken, and why."""
    described = {
        name: offer.description + (f", since {failed[name]}" if name in failed else "")
        for name, offer in found.items()
    }
    functions = {name: offer.function for name, offer in found.items()}
    if "attention" not in found:
        functions["attention"] = fused_attention(functions.pop("rotary"), functions.pop("core_attention"))
        described["attention"] = (
            f"{described.pop('core_attention')}; rotary positions: {described.pop('rotary')}"
        )
    return Kernels(**functions, chosen=tuple(sorted(described.items())), failed_here=failed_here)
