"""Layouts of a run on fewer nodes than it was planned for: a job that loses some goes on with what it has.

Model and batch stay, since they change the numbers. Closed forms choose, which differ from the simulation by less than
1 % (tests/planner/performance/test_layout_search.py): a simulation of each would take as long as the rest of the plan.
"""

from planner.performance.batch_and_layout import choose_batch_and_layout
from planner.performance.layout_search import NoLayoutError, UndividedBatchError
from specs.cluster import Cluster
from specs.layout import Layout
from specs.plan import PlannedRun
from specs.run import RunSpec


def with_fallback_layouts(planned: PlannedRun, cluster: Cluster) -> PlannedRun:
    """The run with its best layouts on half of its nodes, half of these and so on, as far as one fits."""
    nodes, found = -(-planned.execution.layout.devices // cluster.devices_per_node), list[Layout]()
    while nodes > 1:
        nodes //= 2
        try:
            found += _best_layout(planned.run, cluster, nodes)
        except NoLayoutError:  # nor would less memory do
            break
    return planned.model_copy(update={"fallback_layouts": tuple(found)})


def _best_layout(run: RunSpec, cluster: Cluster, nodes: int) -> list[Layout]:
    """The best layout on so many nodes; none where nothing divides the batch. NoLayoutError where nothing fits.

    Where nothing on all of them divides the batch, nodes are left out, as far as the next half; of one node, devices.
    """
    batch, each = run.optim.batch_sequences, cluster.devices_per_node
    next_half, step = (nodes // 2 * each, each) if nodes > 1 else (0, 1)
    for devices in range(nodes * each, next_half, -step):
        try:
            return [choose_batch_and_layout(run.model, cluster, run.precision, devices, batch, batch).layout]
        except UndividedBatchError:
            continue
    return []
