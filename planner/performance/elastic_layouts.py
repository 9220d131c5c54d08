"""Layouts of a run on fewer nodes than it was planned for: a job that loses nodes continues on the remaining ones.

Model and batch stay, since they change the numbers. Closed forms choose, which differ from the simulation by less than
1 % (tests/planner/performance/test_layout_search.py): a simulation of each would take as long as the rest of the plan.
"""

from planner.performance.batch_and_layout import layout_of_batch
from planner.performance.layout_search import NoLayoutError, UndividedBatchError
from specs.cluster import Cluster
from specs.layout import Layout
from specs.plan import PlannedRun
from specs.run import RunSpec


def with_fallback_layouts(planned: PlannedRun, cluster: Cluster) -> PlannedRun:
    """The run with its best layouts on repeatedly halved numbers of nodes, as far as one fits."""
    nodes, found = -(-planned.execution.layout.devices // cluster.devices_per_node), list[Layout]()
    while nodes > 1:
        nodes //= 2
        try:
            found += _best_layout(planned.run, cluster, nodes)
        except NoLayoutError:  # on fewer nodes none fits either
            break
    return planned.model_copy(update={"fallback_layouts": tuple(found)})


def _best_layout(run: RunSpec, cluster: Cluster, nodes: int) -> list[Layout]:
    """The best layout on these nodes; none where no layout divides the batch. NoLayoutError where none fits.

    If no layout on all of them divides the batch, fewer nodes are used, down to the next half (of one node, devices).
    """
    batch, each = run.optim.batch_sequences, cluster.devices_per_node
    next_half, step = (nodes // 2 * each, each) if nodes > 1 else (0, 1)
    for devices in range(nodes * each, next_half, -step):
        try:
            return [layout_of_batch(run.model, cluster, run.precision, devices, batch).layout]
        except UndividedBatchError:
            continue
    return []
