"""Numbers that people write with their unit: `1e24 FLOP`, `80 GiB`, `30 d`, `$2M`, `500 MWh`, `2T tokens`.

Documents that people write carry the unit in the value, and a bare number is refused; documents that programs write
carry it in the name (`compute_flop`). Each type below is a plain float (or int) in base units once it has been
read, and is written back with its base unit, so that reading and writing again changes nothing.
"""

import re
import sys
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

_NUMBER = r"([0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?)"
_LONGEST = 100
# Factors are exact: with floats, 0.017T tokens is not a whole number of tokens.
_Factors = dict[str, Fraction]
_SI: _Factors = {prefix: Fraction(1000) ** power for power, prefix in enumerate(["", *"kMGTPEZY"])}
_COUNT: _Factors = {"": _SI[""], "k": _SI["k"], "K": _SI["k"], "M": _SI["M"], "B": _SI["G"], "T": _SI["T"]}
_BINARY: _Factors = {
    prefix: Fraction(1024) ** power for power, prefix in enumerate(["Ki", "Mi", "Gi", "Ti"], start=1)
}
_BYTE_PREFIXES = {key: _SI[key] for key in ("", "k", "M", "G", "T", "P")} | _BINARY


@dataclass(frozen=True)
class Quantity:
    """How one kind of quantity is written: the factor of each unit, the base unit, and an example for messages."""

    units: tuple[tuple[str, Fraction], ...]
    """Every accepted unit with its size in base units."""
    base: str
    """The unit of the stored number."""
    example: str
    """What to write, for error messages."""
    prefix: str = ""
    """Text before the number (`$`)."""
    whole: bool = False
    """The value must be a whole number of base units and is read as an int."""

    def parse(self, value: Any) -> float | int:
        """The number in base units, or ValueError with what to write instead."""
        if not isinstance(value, str):
            raise ValueError(f"{value!r} has no unit; write it like '{self.example}'")
        match = re.fullmatch(re.escape(self.prefix) + " *" + _NUMBER + " *(.*)", value.strip())
        if match is None or len(value) > _LONGEST:
            raise ValueError(f"'{value}' is not a quantity; write it like '{self.example}'")
        number, unit = match.groups()
        factor = dict(self.units).get(unit)
        if factor is None:
            raise ValueError(self._wrong_unit(value, unit))
        exact = Fraction(number) * factor
        if exact > sys.float_info.max or float(exact) == 0:
            raise ValueError(f"'{value}' is not a positive, finite quantity; write it like '{self.example}'")
        return self._whole(value, exact) if self.whole else float(exact)

    def write(self, value: float) -> str:
        """The text that reads back as exactly this value."""
        return f"{self.prefix}{value!r}{self.base}" if self.prefix else f"{value!r} {self.base}"

    def _whole(self, text: str, exact: Fraction) -> int:
        if exact.denominator != 1:
            raise ValueError(f"'{text}' is not a whole number of {self.base}; write it like '{self.example}'")
        return exact.numerator

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


def _si(unit: str, prefixes: _Factors) -> tuple[tuple[str, Fraction], ...]:
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
    tuple(
        (unit, Fraction(size))
        for unit, size in (("us", "1e-6"), ("ms", "1e-3"), ("s", 1), ("min", 60), ("h", 3600), ("d", 86400))
    ),
    "s",
    "30 d",
)
DOLLARS = Quantity(tuple(_COUNT.items()), "", "$2M", prefix="$")
DOLLARS_PER_HOUR = Quantity((("/h", Fraction(1)),), "/h", "$2.20/h", prefix="$")
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
PARAMS = Quantity(
    _si("params", _COUNT) + tuple((f"{p} params", f) for p, f in _COUNT.items() if p),
    "params",
    "7B params",
    whole=True,
)
WATTS = Quantity(_si("W", _SI), "W", "700 W")
JOULES = Quantity(
    _si("J", _SI) + tuple((f"{p}Wh", 3600 * f) for p, f in _SI.items()),
    "J",
    "500 MWh",
)
LOSS = Quantity((("nats/token", Fraction(1)),), "nats/token", "2.05 nats/token")

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
Params = Annotated[int, PARAMS]
"""A number of parameters."""
Watts = Annotated[float, WATTS]
"""Electrical power."""
Joules = Annotated[float, JOULES]
"""An amount of energy; `Wh` is 3600 J."""
Loss = Annotated[float, LOSS]
"""A loss."""
