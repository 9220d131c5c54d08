"""Machines: devices, their speeds, memory and links, what they cost, with the source of each figure."""

from typing import Literal

from pydantic import Field

from specs.base import Slug, Spec
from specs.quantity import Bytes, BytesPerS, DollarsPerHour, FlopPerS, Seconds, Watts


class Device(Spec):
    """One accelerator, or one core of a plain computer."""

    name: str
    """What it is called on its data sheet."""
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


class Cluster(Spec):
    """Where runs happen. It changes the speed of a run, never its numbers."""

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
    price: DollarsPerHour | None = None
    """Price of one device; null leaves money out of the plan."""
    model_flop_utilisation: float = Field(gt=0, le=1)
    """Share of the peak that training reaches, for hours and money until a run has measured it."""
    model_flop_utilisation_source: str
    """Where that share comes from."""
    checkpoint_every: Seconds
    """Time between checkpoints."""
