"""Numbers for people: counts, durations, energy, losses, in tables and messages."""

import math
from dataclasses import dataclass


def count(value: float) -> str:
    """A count with k, M, B or T and three digits: `1.52T`, `23.6M`, `640`."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:  # rounds to 1, where the smaller unit would round to 1e+03
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def scientific(value: float) -> str:
    """Three digits, with a power of ten where that is shorter: `1.2e21`, as a user writes a compute."""
    return f"{value:.3g}".replace("e+", "e")


def flop_text(value: float) -> str:
    """A compute as a user writes it: `1.2e21 FLOP`."""
    return f"{scientific(value)} FLOP"


def gigabytes(size_bytes: float) -> str:
    """Bytes in GB, as a cluster file writes them: `80 GB`."""
    return f"{size_bytes / 1e9:,.3g} GB"


def several(number: int, what: str) -> str:
    """A number of things: `1 layer`, `2,048 devices`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return str(error).partition("\n")[0]


def duration(seconds: float | None) -> str:
    """Seconds in at most two units: `0.25 s`, `42 s`, `3 min 20 s`, `3 d 4 h`; a dash where it is not known."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    for size_s, unit, part_s, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size_s:
            return f"{whole // size_s} {unit} {whole % size_s // part_s} {part}"
    return f"{whole} s"


def energy(joules: float) -> str:
    """Energy in watt-hours with three digits: `486 MWh`, `1.2 kWh`."""
    hours = joules / 3600
    for size, unit in ((1e9, "GWh"), (1e6, "MWh"), (1e3, "kWh")):
        if hours >= 0.9995 * size:
            return f"{hours / size:.3g} {unit}"
    return f"{hours:.3g} Wh"


@dataclass(frozen=True)
class Losses:
    """How the losses of a text are shown. Documents hold nats per token; bits per byte compare between tokenizers."""

    bytes_per_token: float | None
    """UTF-8 bytes of a held-out token; None where the text is only declared, or only its tokens are known."""
    per_token_in_bits: bool = False
    """Where the bytes are not known: bits per token, not nats, as some tables give them."""

    @property
    def unit(self) -> str:
        """What `of` gives."""
        if self.bytes_per_token is not None:
            return "bits per byte"
        return "bits per token" if self.per_token_in_bits else "nats per token"

    def of(self, nats: float) -> float:
        """A loss in nats per token, in the unit that is shown."""
        if self.bytes_per_token is not None:
            return nats / (self.bytes_per_token * math.log(2))
        return nats / math.log(2) if self.per_token_in_bits else nats

    @property
    def heads(self) -> tuple[str, ...]:
        """Heads of the columns of a table that `cells` fills."""
        return ("nats/token",) if self._only_nats else (self.unit, "nats/token")

    def cells(self, nats: float | None) -> tuple[str, ...]:
        """A loss in the shown unit and in nats per token; dashes where there is none."""
        if nats is None:
            return ("–",) * len(self.heads)
        return (f"{nats:.4f}",) if self._only_nats else (self.text(nats), f"{nats:.4f}")

    @property
    def _only_nats(self) -> bool:
        return self.unit == "nats per token"

    def text(self, nats: float) -> str:
        """A loss in the shown unit, as text without it."""
        return f"{self.of(nats):.3f}"
