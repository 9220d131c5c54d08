from pathlib import Path

from planner.design.inputs import PlanInputs, load_inputs
from specs.budget import Budget
from specs.document.files import load


def inputs_of(budget: Path, out: Path, corpora: Path) -> PlanInputs:
    """The planner's inputs of a budget file, loaded as `isoplan plan` loads them."""
    return load_inputs(load(budget, Budget), budget, out, corpora)
