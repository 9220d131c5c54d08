"""Numbers that people write with their unit: `1e24 FLOP`, `80 GiB`, `400 Gb/s`, `30 d`, `$2M`, `2T tokens`.

Documents that people write carry the unit in the value, and a bare number is refused; documents that programs write
carry it in the name (`compute_flop`). Each type below is a plain float (or int) in base units once it has been read, and
is written back with its base unit, so that reading and writing again changes nothing.
"""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

_NUMBER = r"(\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d{1,3})?)"
_SI = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21, "Y": 1e24}
_COUNT = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_BYTE_PREFIXES = {key: _SI[key] for key in ("", "k", "M", "G", "T", "P")} | _BINARY


@dataclass(frozen=True)
class Quantity:
    """How one kind of quantity is written: the factor of each unit, the base unit, and an example for messages."""

    units: tuple[tuple[str, float], ...]
    """Every accepted unit with its size in base units."""
    base: str
    """The unit of the stored number."""
    example: str
    """What to write, for error messages."""
    prefix: str = ""
    """What stands before the number (`$`)."""
    whole: bool = False
    """The value must be a whole number of base units and is read as an int."""

    def parse(self, value: Any) -> float | int:
        """The number in base units, or ValueError with what to write instead."""
        if not isinstance(value, str):
            raise ValueError(f"{value!r} has no unit; write it like '{self.example}'")
        match = re.fullmatch(re.escape(self.prefix) + r"\s*" + _NUMBER + r"\s*(.*)", value.strip())
        if match is None:
            raise ValueError(f"'{value}' is not a quantity; write it like '{self.example}'")
        number, unit = match.groups()
        factor = dict(self.units).get(unit)
        if factor is None:
            raise ValueError(self._wrong_unit(value, unit))
        result = float(number) * factor
        if not math.isfinite(result) or result <= 0:
            raise ValueError(f"'{value}' is not a positive, finite quantity; write it like '{self.example}'")
        return self._whole(value, result) if self.whole else result

    def write(self, value: float) -> str:
        """The text that reads back as exactly this value."""
        return f"{self.prefix}{value!r}{self.base}" if self.prefix else f"{value!r} {self.base}"

    def _whole(self, text: str, value: float) -> int:
        if value != round(value):
            raise ValueError(f"'{text}' is not a whole number of {self.base}; write it like '{self.example}'")
        return round(value)

    def _wrong_unit(self, text: str, unit: str) -> str:
        if not unit:
            return f"'{text}' has no unit; write it like '{self.example}'"
        return f"'{unit}' in '{text}' is not a unit of this quantity; write it like '{self.example}'"

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.parse,
            serialization=core_schema.plain_serializer_function_ser_schema(self.write, when_used="json"),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "examples": [self.example]}


def _si(unit: str, prefixes: dict[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple((prefix + unit, factor) for prefix, factor in prefixes.items())


FLOP = Quantity(_si("FLOP", _SI), "FLOP", "1e24 FLOP")
FLOP_PER_S = Quantity(_si("FLOP/s", _SI), "FLOP/s", "989 TFLOP/s")
BYTES = Quantity(_si("B", _BYTE_PREFIXES), "B", "80 GiB")
BYTES_PER_S = Quantity(
    _si("B/s", _BYTE_PREFIXES) + tuple((f"{p}b/s", f / 8) for p, f in _BYTE_PREFIXES.items()),
    "B/s",
    "400 Gb/s",
)
SECONDS = Quantity(
    (("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("min", 60.0), ("h", 3600.0), ("d", 86400.0)), "s", "30 d"
)
DOLLARS = Quantity(tuple(_COUNT.items()), "", "$2M", prefix="$")
DOLLARS_PER_HOUR = Quantity((("/h", 1.0),), "/h", "$2.20/h", prefix="$")
DEVICE_HOURS = Quantity(
    tuple(
        (f"{p} {unit}".strip(), factor)
        for unit in ("device-hours", "GPU-hours")
        for p, factor in _COUNT.items()
    ),
    "device-hours",
    "1.5M GPU-hours",
)
TOKENS = Quantity(
    _si("tokens", _COUNT) + tuple((f"{p} tokens", f) for p, f in _COUNT.items() if p),
    "tokens",
    "2T tokens",
    whole=True,
)

Flop = Annotated[float, FLOP]
"""An amount of floating-point operations."""
FlopPerS = Annotated[float, FLOP_PER_S]
"""A rate of floating-point operations."""
Bytes = Annotated[float, BYTES]
"""An amount of memory."""
BytesPerS = Annotated[float, BYTES_PER_S]
"""A bandwidth; `b` is a bit, `B` a byte."""
Seconds = Annotated[float, SECONDS]
"""A duration."""
Dollars = Annotated[float, DOLLARS]
"""An amount of money."""
DollarsPerHour = Annotated[float, DOLLARS_PER_HOUR]
"""A price per device-hour."""
DeviceHours = Annotated[float, DEVICE_HOURS]
"""Devices times hours."""
Tokens = Annotated[int, TOKENS]
"""A number of tokens."""
