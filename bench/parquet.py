"""Small Parquet files as columns of numbers, without a dependency: flat columns, Snappy, plain or dictionary
pages.

Just enough of the format (github.com/apache/parquet-format) for the tables that the benchmarks read; anything
else is refused.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FIXED = {
    1: ("<i4", 4),
    2: ("<i8", 8),
    4: ("<f4", 4),
    5: ("<f8", 8),
}  # physical types INT32, INT64, FLOAT, DOUBLE


def numeric_columns(path: Path) -> dict[str, NDArray[np.float64]]:
    """The file's numeric columns by name, as float64; text columns are left out."""
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[-8:-4])
    footer, _ = _thrift_struct(data, len(data) - 8 - length)
    found: dict[str, list[NDArray[np.float64]]] = {}
    for group in footer[4]:
        for chunk in group[1]:
            meta = chunk[3]
            if meta[1] in _FIXED:
                name = b".".join(meta[3]).decode()
                found.setdefault(name, []).append(_column(data, meta))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _column(data: bytes, meta: dict[int, Any]) -> NDArray[np.float64]:
    kind, width = _FIXED[meta[1]]
    place = min(meta[9], meta.get(11, meta[9]))
    dictionary = np.empty(0)
    parts: list[NDArray[np.float64]] = []
    while sum(len(part) for part in parts) < meta[5]:
        header, start = _thrift_struct(data, place)
        place = start + header[3]
        raw = data[start:place]
        if header[1] == 2:  # dictionary page
            dictionary = np.frombuffer(_unpacked(raw, meta[4]), kind, header[7][1]).astype(float)
        elif header[1] == 0:  # data page, version 1: definition levels, then values
            page, count = _unpacked(raw, meta[4]), header[5][1]
            (levels,) = struct.unpack("<I", page[:4])
            defined = int(_hybrid(page[4 : 4 + levels], 1, count).sum())
            body = page[4 + levels :]
            if header[5][2] == 0:
                parts.append(np.frombuffer(body[: width * defined], kind).astype(float))
            else:
                parts.append(dictionary[_hybrid(body[1:], body[0], defined)])
        else:
            raise ValueError(f"page type {header[1]} is not read here")
    return np.concatenate(parts)


def _unpacked(raw: bytes, codec: int) -> bytes:
    if codec == 0:
        return raw
    if codec == 1:
        return _snappy(raw)
    raise ValueError(f"compression codec {codec} is not read here")


def _snappy(raw: bytes) -> bytes:
    """Snappy's raw format: literals and back-references."""
    _, at = _varint(raw, 0)
    out = bytearray()
    while at < len(raw):
        tag = raw[at]
        at += 1
        kind, length = tag & 3, tag >> 2
        if kind == 0:
            if length >= 60:
                extra = length - 59
                length = int.from_bytes(raw[at : at + extra], "little")
                at += extra
            out += raw[at : at + length + 1]
            at += length + 1
            continue
        if kind == 1:
            length, offset, used = (length & 7) + 4, (tag >> 5) << 8 | raw[at], 1
        else:
            used = 2 if kind == 2 else 4
            length, offset = length + 1, int.from_bytes(raw[at : at + used], "little")
        at += used
        for _ in range(length):
            out.append(out[-offset])
    return bytes(out)


def _hybrid(raw: bytes, bits: int, count: int) -> NDArray[np.int64]:
    """`count` integers of Parquet's run-length and bit-packed hybrid."""
    out: list[int] = []
    at = 0
    while len(out) < count:
        header, at = _varint(raw, at)
        if header & 1:
            packed = int.from_bytes(raw[at : at + (header >> 1) * bits], "little")
            out += [packed >> (i * bits) & (1 << bits) - 1 for i in range((header >> 1) * 8)]
            at += (header >> 1) * bits
        else:
            width = (bits + 7) // 8
            out += [int.from_bytes(raw[at : at + width], "little")] * (header >> 1)
            at += width
    return np.array(out[:count], np.int64)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _thrift_struct(raw: bytes, at: int) -> tuple[dict[int, Any], int]:
    """A struct in Thrift's compact protocol as {field id: value}, and where it ends."""
    fields: dict[int, Any] = {}
    identity = 0
    while raw[at]:
        delta, kind = raw[at] >> 4, raw[at] & 15
        at += 1
        if delta:
            identity += delta
        else:
            zigzag, at = _varint(raw, at)
            identity = (zigzag >> 1) ^ -(zigzag & 1)
        fields[identity], at = _thrift_value(raw, at, kind)
    return fields, at + 1


def _thrift_value(raw: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind in (3, 4, 5, 6):
        zigzag, at = _varint(raw, at)
        return (zigzag >> 1) ^ -(zigzag & 1), at
    if kind == 7:
        return struct.unpack("<d", raw[at : at + 8])[0], at + 8
    if kind == 8:
        length, at = _varint(raw, at)
        return raw[at : at + length], at + length
    if kind in (9, 10):
        count, inner = raw[at] >> 4, raw[at] & 15
        at += 1
        if count == 15:
            count, at = _varint(raw, at)
        items = []
        for _ in range(count):
            item, at = _thrift_value(raw, at, inner)
            items.append(item)
        return items, at
    if kind == 12:
        return _thrift_struct(raw, at)
    raise ValueError(f"Thrift type {kind} is not read here")
