"""Our Triton kernels: what runs on the GPU, one program a row or a tile, arithmetic in fp32.

Each reads its inputs once and writes its results once (cross-entropy reads the logits twice: before and after the
ranks compare). Which tensors they get, and how many programs, is decided in triton_ops.py. Offsets of rows are
64-bit, since logits pass 2^31 elements.
"""

import triton
import triton.language as tl


@triton.jit
def norm_forward(
    x: tl.tensor,
    delta: tl.tensor,
    gain: tl.tensor,
    total: tl.tensor,
    y: tl.tensor,
    inverse: tl.tensor,
    x_stride: tl.tensor,
    delta_stride: tl.tensor,
    width: tl.tensor,
    eps: tl.tensor,
    HAS_DELTA: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A row of total = x + delta, inverse = 1 / sqrt(mean(total^2) + eps), y = total inverse gain."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    s = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        s += tl.load(delta + row * delta_stride + at, mask=inside, other=0.0).to(tl.float32)
        rounded = s.to(total.dtype.element_ty)
        tl.store(total + row * width + at, rounded, mask=inside)
        s = rounded.to(tl.float32)  # what backward will read
    r = 1.0 / tl.sqrt(tl.sum(s * s, axis=0) / width + eps)
    tl.store(inverse + row, r)
    g = tl.load(gain + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * width + at, (s * r * g).to(y.dtype.element_ty), mask=inside)


@triton.jit
def norm_backward(
    dy: tl.tensor,
    ds: tl.tensor,
    total: tl.tensor,
    inverse: tl.tensor,
    gain: tl.tensor,
    dx: tl.tensor,
    partial: tl.tensor,
    dy_stride: tl.tensor,
    ds_stride: tl.tensor,
    total_stride: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    HAS_DS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Every n-th row's dx = (g - unit mean(g unit)) inverse + ds, with g = dy gain; the sum of dy unit to `partial`."""
    first = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0)
    at = tl.arange(0, BLOCK)
    inside = at < width
    summed = tl.zeros((BLOCK,), dtype=tl.float32)
    for turn in range(tl.cdiv(rows - first, programs)):
        row = first + turn * programs
        r = tl.load(inverse + row)
        unit = tl.load(total + row * total_stride + at, mask=inside, other=0.0).to(tl.float32) * r
        d = tl.load(dy + row * dy_stride + at, mask=inside, other=0.0).to(tl.float32)
        summed += d * unit
        # read again for each row, from the nearest cache: kept in registers, it would make them spill at large widths
        d *= tl.load(gain + at, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
        result = (d - unit * (tl.sum(d * unit, axis=0) / width)) * r
        if HAS_DS:
            result += tl.load(ds + row * ds_stride + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + row * width + at, result.to(dx.dtype.element_ty), mask=inside)
    tl.store(partial + first * width + at, summed, mask=inside)


@triton.jit
def gate_forward(
    projected: tl.tensor, inner: tl.tensor, stride: tl.tensor, width: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """A tile of silu(gate) * up."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(projected + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(projected + row * stride + width + at, mask=inside, other=0.0).to(tl.float32)
    opened = gate * (1.0 / (1.0 + tl.exp(-gate)))  # bitwise as in backward
    result = opened * up
    tl.store(inner + row * width + at, result.to(inner.dtype.element_ty), mask=inside)


@triton.jit
def gate_backward(
    dinner: tl.tensor,
    projected: tl.tensor,
    dprojected: tl.tensor,
    inner: tl.tensor,
    dinner_stride: tl.tensor,
    stride: tl.tensor,
    width: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """A tile of gate's and up's gradients, and of the inner activations once more."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    d = tl.load(dinner + row * dinner_stride + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(projected + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(projected + row * stride + width + at, mask=inside, other=0.0).to(tl.float32)
    half = 1.0 / (1.0 + tl.exp(-gate))
    opened = gate * half
    into = dprojected + row * 2 * width + at
    dgate = d * up * (half + opened * (1.0 - half))
    tl.store(into, dgate.to(dprojected.dtype.element_ty), mask=inside)
    tl.store(into + width, (d * opened).to(dprojected.dtype.element_ty), mask=inside)
    tl.store(inner + row * width + at, (opened * up).to(inner.dtype.element_ty), mask=inside)


@triton.jit
def rotate(
    x: tl.tensor,
    out: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    sign: tl.tensor,
    x_batch: tl.tensor,
    x_row: tl.tensor,
    x_head: tl.tensor,
    out_batch: tl.tensor,
    out_row: tl.tensor,
    out_head: tl.tensor,
    cos_size: tl.tensor,
    cos_row: tl.tensor,
    sequence: tl.tensor,
    half: tl.tensor,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Some rows of one head, turned by their positions; `out` may be `x`."""
    head = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    batch = tl.program_id(2).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = (rows < sequence)[:, None] & (at < half)[None, :]
    angles = rows[:, None] * cos_row + at[None, :] * cos_size
    c = tl.load(cos + angles, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + half * cos_size + angles, mask=inside, other=0.0).to(tl.float32) * sign
    rows = rows.to(tl.int64)
    from_ = x + batch * x_batch + head * x_head + rows[:, None] * x_row + at[None, :]
    low = tl.load(from_, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(from_ + half, mask=inside, other=0.0).to(tl.float32)
    into = out + batch * out_batch + head * out_head + rows[:, None] * out_row + at[None, :]
    tl.store(into, (low * c - high * s).to(out.dtype.element_ty), mask=inside)
    tl.store(into + half, (high * c + low * s).to(out.dtype.element_ty), mask=inside)


@triton.jit
def measure(
    logits: tl.tensor,
    column: tl.tensor,
    peak: tl.tensor,
    total: tl.tensor,
    target_logit: tl.tensor,
    stride: tl.tensor,
    columns: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """A row's largest logit, its sum of exp(logit - largest), and the target's logit if its column is here."""
    row = tl.program_id(0).to(tl.int64)
    largest = -float("inf")
    summed = 0.0
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits + row * stride + at, mask=at < columns, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(largest, tl.max(x, axis=0))
        summed = summed * tl.exp(largest - higher) + tl.sum(tl.exp(x - higher), axis=0)
        largest = higher
    target = tl.load(column + row)
    held = (target >= 0) & (target < columns)
    tl.store(peak + row, largest)
    tl.store(total + row, summed)
    tl.store(target_logit + row, tl.load(logits + row * stride + target, mask=held, other=0.0).to(tl.float32))


@triton.jit
def differentiate(
    logits: tl.tensor,
    column: tl.tensor,
    peak: tl.tensor,
    scale: tl.tensor,
    share: tl.tensor,
    stride: tl.tensor,
    columns: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """A tile of logits becomes exp(logit - peak) scale, less `share` at the target."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < columns
    place = logits + row * stride + at
    x = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.exp(x - tl.load(peak + row)) * tl.load(scale + row)
    gradient = tl.where(at == tl.load(column + row), gradient - share, gradient)
    tl.store(place, gradient.to(logits.dtype.element_ty), mask=inside)
