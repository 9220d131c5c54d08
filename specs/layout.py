"""The parallel layout of a run: data, pipeline and tensor parallel sizes, and whether they fit a model."""

from itertools import accumulate, pairwise
from typing import Literal

from pydantic import Field

from specs.document.base import Spec
from specs.model import ModelSpec
from specs.optim import OptimSpec


class Layout(Spec):
    """Sizes of the three axes and what goes with them. Changes results only by rounding."""

    dp: int = Field(ge=1)
    """Data-parallel replicas, over which ZeRO-1 splits the optimizer."""
    pp: int = Field(ge=1)
    """Pipeline stages."""
    tp: int = Field(ge=1)
    """Tensor-parallel ranks of a stage."""
    sequence_parallel: bool
    """Activations between sub-layers are split over the tensor-parallel ranks."""
    micro_batch_sequences: int = Field(ge=1)
    """Sequences in one forward pass of one replica."""
    recompute: Literal["none", "selective", "full"]
    """Activation recomputation (checkpointing): which activations backward computes again instead of saving them."""
    interleave: int = Field(default=1, ge=1)
    """Virtual stages of each pipeline rank: chunk c of rank r is virtual stage c * pp + r, in order of depth."""
    stage_layers: tuple[int, ...] | None = None
    """Blocks of every virtual stage, in order of depth; null is as even as possible, the first ones longer."""

    @property
    def devices(self) -> int:
        """Ranks in all."""
        return self.dp * self.pp * self.tp

    def blocks(self, layers: int) -> tuple[range, ...]:
        """The blocks of every virtual stage, pp x interleave of them, in order of depth."""
        stages = self.pp * self.interleave
        sizes = self.stage_layers or tuple(layers // stages + (i < layers % stages) for i in range(stages))
        ends = tuple(accumulate(sizes, initial=0))
        return tuple(range(start, stop) for start, stop in pairwise(ends))

    def micro_batches(self, optim: OptimSpec) -> int:
        """Micro-batches of one replica per step."""
        return optim.batch_sequences // (self.dp * self.micro_batch_sequences)

    def problems(self, model: ModelSpec, optim: OptimSpec) -> list[str]:
        """Why this model and batch do not fit this layout; empty where they do."""
        found = self.problems_of_shape(model)
        if optim.batch_sequences % (self.dp * self.micro_batch_sequences):
            found.append(
                f"a batch of {optim.batch_sequences} sequences is not a multiple of "
                f"dp x micro-batch = {self.dp} x {self.micro_batch_sequences}"
            )
        elif self.interleave > 1 and self.micro_batches(optim) % self.pp:
            found.append(
                f"interleaving needs micro-batches in multiples of pp {self.pp}, not {self.micro_batches(optim)}"
            )
        return found

    def problems_of_shape(self, model: ModelSpec) -> list[str]:
        """Why this model does not fit this layout, whatever the batch; empty where it does."""
        found = []
        stages = self.pp * self.interleave
        if stages > model.layers:
            found.append(f"{stages} pipeline stages are more than the {model.layers} layers")
        if self.interleave > 1 and self.pp == 1:
            found.append(f"interleave {self.interleave} without a pipeline; write interleave: 1")
        if self.stage_layers is not None and (
            len(self.stage_layers) != stages
            or sum(self.stage_layers) != model.layers
            or min(self.stage_layers) < 1
        ):
            found.append(
                f"stage_layers {list(self.stage_layers)} are not {stages} stages that add up to {model.layers} layers"
            )
        for name, size in (("heads", model.heads), ("kv_heads", model.kv_heads), ("ffn", model.ffn)):
            if size % self.tp:
                found.append(f"{name} {size} is not a multiple of tp {self.tp}")
        if self.sequence_parallel and (self.tp == 1 or model.context % self.tp):
            found.append(
                f"sequence parallelism needs tp > 1 that divides the context {model.context}, not tp {self.tp}"
            )
        return found
