"""Clusters: devices, their speeds, memory and links, prices, with the source of each figure."""

from typing import Literal, Self

from pydantic import Field, model_validator

from specs.checkpoint_retention import Retention
from specs.document.base import Slug, Spec
from specs.document.quantity import Bytes, BytesPerS, DollarsPerHour, FlopPerS, Seconds, Watts
from specs.preflight import Preflight
from specs.profile_window import ProfileWindow
from specs.slurm import Slurm
from specs.tracker import Tracker


class Device(Spec):
    """One accelerator, or one core of a plain computer."""

    name: str
    """Its name on the data sheet."""
    backend: Literal["cpu", "cuda"]
    """Which torch device it is."""
    peak_bf16: FlopPerS
    """Dense matrix rate in bf16."""
    peak_fp32: FlopPerS
    """Matrix rate in fp32 (TF32 not counted)."""
    memory: Bytes
    """Memory of the device."""
    memory_bandwidth: BytesPerS
    """Rate of reading its memory."""
    power: Watts | None = None
    """Electrical power under load, the device alone; null leaves energy out of the plan."""

    def peak_flop_per_s(self, precision: str) -> float:
        """The peak matrix rate in a run's precision."""
        return self.peak_bf16 if precision == "bf16" else self.peak_fp32


class Efficiency(Spec):
    """What training reaches of a device's data sheet; the planner's seconds of a step rest on it."""

    matmul: float = Field(gt=0, le=1)
    """Share of the peak that a matrix multiplication with a long inner dimension reaches while a model trains."""
    matmul_half_depth: float = Field(ge=0)
    """Inner dimension at which half of that share is left: filling and emptying a tile's pipeline costs as much."""
    attention: float = Field(gt=0, le=1)
    """Share of the peak that flash attention reaches, half of the causal square counted."""
    memory: float = Field(gt=0, le=1)
    """Share of the memory's rate that elementwise operations reach."""
    links: float = Field(gt=0, le=1)
    """Share of a link's bandwidth that collectives reach."""
    overlap: float = Field(ge=0, le=1)
    """Share of tensor parallel communication that an engine which overlaps it hides beneath matrix multiplications."""
    launch: Seconds
    """Time between two kernels."""
    message: Seconds
    """Time that a collective or a transfer takes however little it carries, per node that it goes through."""
    multiprocessors: int = Field(ge=1)
    """Processors among which tiles of a matrix multiplication are shared out, each one at a time."""
    uptime: float = Field(gt=0, le=1)
    """Share of a run's hours in which it trains; the rest goes to restarts, checkpoints and evaluations."""
    source: str
    """Where these figures come from."""


class Cluster(Spec):
    """Where runs are executed. It changes the speed of a run, never its numbers."""

    kind: Literal["cluster"]
    """Selects this document."""
    name: Slug
    """Name in the catalog."""
    source: str
    """Where the figures come from."""
    device: Device
    """Every device is of this kind."""
    devices: int = Field(ge=1)
    """Devices that one run may use."""
    devices_per_node: int = Field(ge=1)
    """Devices that share the fast link."""
    intra_node: BytesPerS
    """Bandwidth of a device to its node's others, one direction."""
    inter_node: BytesPerS
    """Bandwidth of a device to other nodes, one direction."""
    cpus_per_node: int | None = Field(default=None, ge=1)
    """CPU cores of a node of GPUs that jobs may use: each GPU's rank requests its share of them. Null requests the
    partition's default."""
    memory_per_node: Bytes | None = None
    """Host memory of a node that jobs may use; a plan that needs more is refused. Null checks nothing."""
    price: DollarsPerHour | None = None
    """Price of one device; null leaves money out of the plan."""
    model_flop_utilisation: float = Field(gt=0, le=1)
    """Share of the peak that training reaches, for hours and money until a run has measured it."""
    model_flop_utilisation_source: str
    """Where that share comes from."""
    efficiency: Efficiency | None = None
    """What training reaches of the data sheet; null leaves the step's time to `model_flop_utilisation`."""
    checkpoint_interval: Seconds
    """Time between checkpoints."""
    checkpoint_interval_steps: int | None = Field(default=None, ge=1)
    """Steps between further checkpoints; null writes none."""
    retention: Retention = Retention()
    """Which checkpoints stay."""
    preflight: Preflight | None = None
    """A check of the nodes before every start of a SLURM job, which takes seconds; `{}` has the defaults. Null checks
    nothing."""
    hang_timeout: Seconds = 300.0
    """Time without progress after which a run is ended as hung and started again; ten median steps, if longer."""
    profile: ProfileWindow | None = None
    """Steps of every run that are profiled; null for none."""
    tracker: Tracker | None = None
    """Where the curves of runs are sent; null for nowhere. Read when they are sent: a sealed plan does not change."""
    slurm: Slurm = Slurm()
    """How runs are queued there; read when they are queued, so a sealed plan does not change."""

    @property
    def cpus_per_device(self) -> int | None:
        """CPU cores that a GPU's rank requests; null where neither `slurm` nor the node's cores say."""
        if self.slurm.cpus_per_device is not None or self.cpus_per_node is None:
            return self.slurm.cpus_per_device
        return max(1, self.cpus_per_node // self.devices_per_node)

    @model_validator(mode="after")
    def _node_has_it(self) -> Self:
        cores, asked = self.cpus_per_node, self.slurm.cpus_per_device
        if cores is not None and asked is not None and asked * self.devices_per_node > cores:
            most = max(1, cores // self.devices_per_node)
            raise ValueError(
                f"slurm.cpus_per_device {asked} on {self.devices_per_node} devices is more than cpus_per_node {cores}; "
                f"write at most {most}"
            )
        if self.memory_per_node is not None and (self.slurm.memory or 0.0) > self.memory_per_node:
            raise ValueError(
                f"slurm.memory {self.slurm.memory:g} B is more than memory_per_node {self.memory_per_node:g} B; "
                "write at most that"
            )
        return self
