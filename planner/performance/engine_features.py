"""Features of a training engine that change its step time and memory: ours, and those of published measurements."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Engine:
    """Features that change the time or memory of a step, not its result."""

    flash: bool
    """Flash attention: the score matrix is never stored (arXiv 2205.14135)."""
    fused: bool
    """Each chain of elementwise operations is one pass over memory; else each operation is one."""
    fused_loss: bool
    """The gradient overwrites the 16-bit logits; else fp32 copies are made."""
    fused_gradients: bool
    """Gradient accumulation in fp32 inside the weight gradient's matrix multiplication."""
    overlaps_tensor: bool
    """Tensor-parallel collectives overlap with matrix multiplications."""
    overlaps_data: bool
    """Gradient reduce-scatter overlaps with the last backward pass, parameter all-gather with the next forward pass."""
    overlaps_pipeline: bool
    """Transfers between pipeline stages overlap with compute."""
    shards_optimizer: bool
    """ZeRO-1 (arXiv 1910.02054)."""
    reduce_bytes: int
    """Bytes of a gradient in the reduction."""
    stages_adjacent: bool
    """Ranks of neighbouring pipeline stages are adjacent and replicas apart; Megatron-LM has it the other way round."""
    saved_inner_tensors: int
    """Inner tensors of the feed-forward that a block saves for backward."""
    recomputes_norms: bool
    """Selective activation recomputation recomputes norms too, not only attention."""
    recomputed_matmul_share: float = 0.0
    """Share of the blocks' matrix multiplications that selective recomputation repeats, with all elementwise work."""


OURS = Engine(
    flash=True,
    fused=True,
    fused_loss=True,
    fused_gradients=True,
    overlaps_tensor=True,
    overlaps_data=True,
    overlaps_pipeline=True,
    shards_optimizer=True,
    reduce_bytes=4,
    stages_adjacent=True,
    saved_inner_tensors=2,
    recomputes_norms=True,
)
"""The engine in model/ and runtime/ on GPUs."""
ON_CPU = replace(OURS, flash=False, fused=False, saved_inner_tensors=4)
"""The same on a CPU, where attention stores its scores (model/kernels/torch_cpu.py, up to a context of 1024)."""
