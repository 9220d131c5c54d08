"""The search for a target run: inputs and laws, and the runs that they give at a compute."""

from dataclasses import dataclass, replace

from planner.design.allocation import Laws, shape_for_objective
from planner.design.inputs import PlanInputs
from planner.design.run_draft import DraftRequest, RunSettings, draft
from planner.performance.batch_and_layout import BatchAndLayout
from planner.scaling.data_constrained import MixedText, UniqueTokens
from specs.humanize import several
from specs.model import ModelSpec
from specs.plan import PlannedRun


@dataclass(frozen=True)
class TargetSearch:
    """Inputs and laws with which a target run is searched."""

    inputs: PlanInputs
    laws: Laws
    rate_multiple: float = 1.0

    def shape(self, compute_flop: float, stages: int = 1) -> ModelSpec:
        """The shape of a run of this compute, balanced over the stages."""
        inputs = self.inputs
        return shape_for_objective(
            compute_flop, inputs.budget.objective, self.laws, inputs.family, inputs.rows, stages
        )

    def with_devices(self, devices: int) -> "TargetSearch":
        """The same search on another number of the cluster's devices."""
        cluster = self.inputs.cluster.model_copy(update={"devices": devices})
        return replace(self, inputs=replace(self.inputs, cluster=cluster))

    def with_budget(self, **changes: object) -> "TargetSearch":
        """The same search with other fields in the budget."""
        return replace(
            self, inputs=replace(self.inputs, budget=self.inputs.budget.model_copy(update=changes))
        )

    def with_unique_tokens(self, unique_tokens: float) -> "TargetSearch":
        """The same search with another amount of text behind the loss surface: so many tokens in an epoch. In a mix,
        every source has more or less in the same ratio."""
        surface = self.laws.surface
        if surface is None:
            return self
        text: UniqueTokens = unique_tokens
        if isinstance(surface.unique_tokens, MixedText):
            text = surface.unique_tokens.scaled(unique_tokens / surface.unique_tokens.one_epoch)
        return replace(self, laws=replace(self.laws, surface=replace(surface, unique_tokens=text)))

    def draft(self, compute_flop: float, stages: int = 1) -> PlannedRun:
        """The run of this compute; NoLayoutError where no layout fits it."""
        return self.draft_shape(self.shape(compute_flop, stages), compute_flop)

    def draft_shape(
        self, shape: ModelSpec, compute_flop: float, chosen: BatchAndLayout | None = None
    ) -> PlannedRun:
        """The run of a shape with this compute, in the given batch and layout or the best; errors as in `draft`."""
        inputs = self.inputs
        title = f"{compute_flop:.1e} FLOP, width {shape.width}, {several(shape.layers, 'layer')}"
        devices, batch = inputs.cluster.devices, inputs.budget.batch
        request = DraftRequest("target", title, compute_flop, shape, devices, self.rate_multiple, batch)
        return draft(run_settings(inputs), request, chosen)


def run_settings(inputs: PlanInputs) -> RunSettings:
    """Settings that all runs of the plan share."""
    return RunSettings(
        budget=inputs.budget,
        family=inputs.family,
        cluster=inputs.cluster,
        hyper=inputs.hyper,
        data=inputs.data,
        vocab=inputs.rows,
        mix=inputs.mix,
    )
