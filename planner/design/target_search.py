"""One search for a target run: the desk, the laws, and the drafts that they give at a compute."""

from dataclasses import dataclass, replace

from planner.design.allocation import Laws, shape_at
from planner.design.inputs import PlanInputs
from planner.design.run_draft import DraftRequest, Setting, draft
from planner.performance.batch_and_layout import BatchAndLayout
from specs.data import CorpusRef
from specs.humanize import several
from specs.model import ModelSpec
from specs.plan import PlannedRun


@dataclass(frozen=True)
class Search:
    """What a target run is looked for with."""

    desk: PlanInputs
    laws: Laws
    rate_multiple: float = 1.0

    def shape(self, compute_flop: float, stages: int = 1) -> ModelSpec:
        """The shape of a run of this compute, balanced over the stages."""
        desk = self.desk
        return shape_at(compute_flop, desk.budget.objective, self.laws, desk.family, desk.vocab, stages)

    def on(self, devices: int) -> "Search":
        """The same search on another number of the cluster's devices."""
        cluster = self.desk.cluster.model_copy(update={"devices": devices})
        return replace(self, desk=replace(self.desk, cluster=cluster))

    def asking(self, **changes: object) -> "Search":
        """The same search with other fields in the budget."""
        return replace(self, desk=replace(self.desk, budget=self.desk.budget.model_copy(update=changes)))

    def draft(self, compute_flop: float, stages: int = 1) -> PlannedRun:
        """The run of this compute; NoLayoutError or UndividedBatchError where no layout takes it."""
        return self.train(self.shape(compute_flop, stages), compute_flop)

    def train(self, shape: ModelSpec, compute_flop: float, laid: BatchAndLayout | None = None) -> PlannedRun:
        """The run that gives a shape this compute, laid out as given or as is best; errors as in `draft`."""
        desk = self.desk
        title = f"{compute_flop:.1e} FLOP, width {shape.width}, {several(shape.layers, 'layer')}"
        devices, batch = desk.cluster.devices, desk.budget.batch
        wish = DraftRequest("target", title, compute_flop, shape, devices, self.rate_multiple, batch)
        return draft(setting_of(desk), wish, laid)


def setting_of(desk: PlanInputs) -> Setting:
    """What all runs of the plan share."""
    digest = None if desk.corpus is None else desk.corpus.digest
    return Setting(
        budget=desk.budget,
        family=desk.family,
        cluster=desk.cluster,
        hyper=desk.hyper,
        data=CorpusRef(corpus=desk.budget.data.fingerprint(), digest=digest),
        vocab=desk.vocab,
    )
