"""What a training engine does, as far as seconds and bytes depend on it: ours, and whose published figures we check."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Engine:
    """Features that change the time or memory of a step, not its result."""

    flash: bool
    """Attention never stores its square (arXiv 2205.14135)."""
    fused: bool
    """Chains of elementwise operations are one pass over memory each; else every operation is its own."""
    fused_loss: bool
    """The gradient takes the place of 16-bit logits; else fp32 copies are made."""
    fused_gradients: bool
    """Weight gradients are summed in fp32 inside the matrix multiplication."""
    overlaps_tensor: bool
    """Tensor parallel collectives run beneath matrix multiplications."""
    overlaps_data: bool
    """Gradients are reduced beneath the last backward pass, parameters gathered beneath the next forward pass."""
    overlaps_pipeline: bool
    """Transfers between stages run beneath work."""
    shards_optimizer: bool
    """ZeRO-1 (arXiv 1910.02054)."""
    reduce_bytes: int
    """Bytes of a gradient on the wire."""
    stages_adjacent: bool
    """Ranks of neighbouring stages are neighbours, replicas lie apart; Megatron-LM has it the other way round."""
    saved_inner_tensors: int
    """Inner tensors of the feed-forward that a block keeps."""
    recomputes_norms: bool
    """Selective recomputation replays norms too, not attention alone."""
    recomputed_matmul_share: float = 0.0
    """Share of the blocks' matrix multiplications that selective recomputation replays, with all elementwise work."""


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
"""The same on a CPU, where attention keeps its square (model/kernels/torch_cpu.py, up to a context of 1024)."""
