"""Losses as a person reads them: bits per byte where the text is at hand, else the nats per token of the documents."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Losses:
    """How the losses of a text are shown. Documents hold nats per token; bits per byte compare between tokenizers."""

    bytes_per_token: float | None
    """UTF-8 bytes of a held-out token; None where the text was only declared."""

    @property
    def unit(self) -> str:
        """What `of` gives."""
        return "nats per token" if self.bytes_per_token is None else "bits per byte"

    def of(self, nats: float) -> float:
        """A loss in nats per token, in the unit that is shown."""
        return nats if self.bytes_per_token is None else nats / (self.bytes_per_token * math.log(2))

    @property
    def heads(self) -> tuple[str, ...]:
        """Heads of the columns of a table that `cells` fills."""
        return ("nats/token",) if self.bytes_per_token is None else (self.unit, "nats/token")

    def cells(self, nats: float | None) -> tuple[str, ...]:
        """A loss in the shown unit and in nats per token; dashes where there is none."""
        if nats is None:
            return ("–",) * len(self.heads)
        return (f"{nats:.4f}",) if self.bytes_per_token is None else (self.say(nats), f"{nats:.4f}")

    def say(self, nats: float) -> str:
        """A loss in the shown unit, as text without it."""
        return f"{self.of(nats):.3f}"
