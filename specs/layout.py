"""How a run is laid over devices: data, pipeline and tensor parallel sizes, and whether a model can be cut so."""

from typing import Literal

from pydantic import Field

from specs.base import Spec
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
    """What the backward pass computes again instead of keeping."""

    @property
    def devices(self) -> int:
        """Ranks in all."""
        return self.dp * self.pp * self.tp

    def micro_batches(self, optim: OptimSpec) -> int:
        """Micro-batches of one replica per step."""
        return optim.batch_sequences // (self.dp * self.micro_batch_sequences)

    def problems(self, model: ModelSpec, optim: OptimSpec) -> list[str]:
        """Why this model and batch cannot be laid out so; empty when they can."""
        found = self.problems_of_shape(model)
        if optim.batch_sequences % (self.dp * self.micro_batch_sequences):
            found.append(
                f"a batch of {optim.batch_sequences} sequences is not a multiple of "
                f"dp x micro-batch = {self.dp} x {self.micro_batch_sequences}"
            )
        return found

    def problems_of_shape(self, model: ModelSpec) -> list[str]:
        """Why this model cannot be cut so, whatever the batch; empty when it can."""
        found = []
        if self.pp > model.layers:
            found.append(f"{self.pp} pipeline stages for {model.layers} layers")
        for name, size in (("heads", model.heads), ("kv_heads", model.kv_heads), ("ffn", model.ffn)):
            if size % self.tp:
                found.append(f"{name} {size} is not a multiple of tp {self.tp}")
        if self.sequence_parallel and (self.tp == 1 or model.context % self.tp):
            found.append(
                f"sequence parallelism needs tp > 1 that divides the context {model.context}, not tp {self.tp}"
            )
        return found
