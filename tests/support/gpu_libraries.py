"""Stand-ins of flash-attn 2, 3 and 4 and of apex: their real signatures, which accept what the real ones accept.

Signatures and refusals are those of flash-attention's tree of 2026-08-15 (flash_attn/flash_attn_interface.py and
csrc/flash_attn/flash_api.cpp; hopper/flash_attn_interface.py and hopper/flash_api.cpp; flash_attn/cute/interface.py)
and of apex's tree of 2026-07-08 (csrc/layer_norm_cuda.cpp, csrc/megatron/fused_weight_gradient_dense_cuda.cu,
apex/contrib/csrc/optimizers/multi_tensor_distopt_adam_kernel.cu), but that tensors must be on a GPU. The arithmetic is
torch's.
"""

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.flash import _VERSIONS

MODULES = dict(_VERSIONS)
APEX = ("distributed_adam_cuda", "fused_weight_gradient_mlp_cuda", "fused_layer_norm_cuda")


def module(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    """An installed module with these functions."""
    made = ModuleType(name)
    made.__dict__.update(functions)
    monkeypatch.setitem(sys.modules, name, made)


def remove(monkeypatch: pytest.MonkeyPatch, names: Sequence[str] = (*MODULES.values(), *APEX)) -> None:
    """Nothing of that name is installed."""
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def install_flash(monkeypatch: pytest.MonkeyPatch, version: str, capability: int = 9) -> None:
    """One version of flash-attn, for GPUs of a compute capability, 8, 9 or 10."""
    makers = {
        "flash-attn 2": flash_2,
        "flash-attn 3": flash_3,
        "flash-attn 4": lambda: flash_4(capability),
    }
    module(monkeypatch, MODULES[version], **makers[version]())


class _Attention(torch.autograd.Function):
    """Causal attention of one whole sequence each, (B, S, heads, K), whose backward may refuse."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, check_backward: Callable[[int], None]
    ) -> Tensor:
        ctx.check, ctx.causal = check_backward, causal
        ctx.save_for_backward(q, k, v)
        return _torchs(q, k, v, causal)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        q, k, v = ctx.saved_tensors
        ctx.check(q.shape[-1])
        with torch.enable_grad():
            leaves = [one.detach().requires_grad_() for one in (q, k, v)]
            return (*torch.autograd.grad(_torchs(*leaves, ctx.causal), leaves, grads[0]), None, None)


def _torchs(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    grouped = q.shape[2] != k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped).transpose(1, 2)


def _documents(attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, ends: Tensor) -> Tensor:
    """Documents side by side, each by itself."""
    assert ends.dtype == torch.int32, "cu_seqlens_q, cu_seqlens_k must be int32"
    assert int(ends[-1]) == len(q)
    documents = zip(*(x.split(ends.diff().tolist()) for x in (q, k, v)), strict=True)
    return torch.cat([attend(*(x[None] for x in one))[0] for one in documents])


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    """What all three ask for."""
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    if not q.dtype == k.dtype == v.dtype:
        raise RuntimeError("query and key must have the same dtype")
    if any(x.stride(-1) != 1 for x in (q, k, v)):
        raise RuntimeError("Input tensor must have contiguous last dimension")
    if q.shape[-2] % k.shape[-2]:
        raise RuntimeError("Number of heads in key/value must divide number of heads in query")


def _nothing(_: int) -> None:
    """A backward that takes every head size."""


def flash_2() -> dict[str, Callable[..., Any]]:
    """Head sizes up to 256; those that are no multiple of 8 are padded."""

    def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        _check(q, k, v)
        if q.shape[-1] > 256:
            raise RuntimeError("FlashAttention forward only supports head dimension at most 256")
        return _Attention.apply(q, k, v, causal, _nothing)  # type: ignore[no-untyped-call,no-any-return]

    def flash_attn_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
    ) -> Tensor:
        return attend(q, k, v, causal)

    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
        block_table: Tensor | None = None,
    ) -> Tensor:
        return _documents(lambda *one: attend(*one, causal), q, k, v, cu_seqlens_q)

    return {"flash_attn_func": flash_attn_func, "flash_attn_varlen_func": flash_attn_varlen_func}


def flash_3() -> dict[str, Callable[..., Any]]:
    """Head sizes that are multiples of 8 up to 256; no deterministic backward where they round up to 256."""

    def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, deterministic: bool) -> Tensor:
        _check(q, k, v)
        if q.shape[-1] > 256:
            raise RuntimeError("FlashAttention forward only supports head dimension at most 256")
        if q.shape[-1] % 8:
            raise RuntimeError("head_size should be a multiple of 8")

        def check_backward(size: int) -> None:
            if deterministic and size > 192:
                raise RuntimeError("Deterministic backward not supported for hdim 256.")

        return _Attention.apply(q, k, v, causal, check_backward)  # type: ignore[no-untyped-call,no-any-return]

    def flash_attn_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        softmax_scale: float | None = None,
        causal: bool = False,
        qv: Tensor | None = None,
        q_descale: Tensor | None = None,
        k_descale: Tensor | None = None,
        v_descale: Tensor | None = None,
        window_size: tuple[int, int] = (-1, -1),
        attention_chunk: int = 0,
        softcap: float = 0.0,
        num_splits: int = 1,
        pack_gqa: bool | None = None,
        deterministic: bool = False,
        sm_margin: int = 0,
        return_attn_probs: bool = False,
    ) -> Tensor:
        return attend(q, k, v, causal, deterministic)

    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        seqused_q: Tensor | None = None,
        seqused_k: Tensor | None = None,
        softmax_scale: float | None = None,
        causal: bool = False,
        qv: Tensor | None = None,
        q_descale: Tensor | None = None,
        k_descale: Tensor | None = None,
        v_descale: Tensor | None = None,
        window_size: tuple[int, int] = (-1, -1),
        attention_chunk: int = 0,
        softcap: float = 0.0,
        num_splits: int = 1,
        pack_gqa: bool | None = None,
        deterministic: bool = False,
        sm_margin: int = 0,
        return_attn_probs: bool = False,
    ) -> Tensor:
        return _documents(lambda *one: attend(*one, causal, deterministic), q, k, v, cu_seqlens_q)

    return {"flash_attn_func": flash_attn_func, "flash_attn_varlen_func": flash_attn_varlen_func}


def flash_4(capability: int) -> dict[str, Callable[..., Any]]:
    """Multiples of 8 from 8 to 256 on Hopper, to 128 and 256 on Blackwell; on Ampere any, but without a backward."""

    def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        _check(q, k, v)
        size = q.shape[-1]
        if capability == 9:
            assert 8 <= size <= 256 and size % 8 == 0, (  # noqa: PT018 (as it stands there)
                f"(head_dim, head_dim_v)=({size}, {size}) is not supported on SM90. "
                "head_dim and head_dim_v must be between 8 and 256 and divisible by 8."
            )
        if capability == 10:
            assert (8 <= size <= 128 or size == 256) and size % 8 == 0, (  # noqa: PT018
                f"(head_dim, head_dim_v)=({size}, {size}) is not supported on SM100/SM110. "
                "head_dim and head_dim_v must be between 8 and 128 and divisible by 8, or (192, 128) for DeepSeek, "
                "or (256, 256) for hd256."
            )

        def check_backward(_: int) -> None:
            supported = "Unsupported compute capability. Supported: 9.x, 10.x, 11.x, 12.x"
            assert capability in (9, 10, 11, 12), supported

        return _Attention.apply(q, k, v, causal, check_backward)  # type: ignore[no-untyped-call,no-any-return]

    def flash_attn_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        qv: Tensor | None = None,
        gather_kv_indices: Tensor | None = None,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int | None, int | None] = (None, None),
        learnable_sink: Tensor | None = None,
        softcap: float = 0.0,
        num_splits: int = 1,
        pack_gqa: bool | None = None,
        deterministic: bool = False,
        score_mod: Any = None,
        score_mod_bwd: Any = None,
        mask_mod: Any = None,
        aux_tensors: list[Tensor] | None = None,
        aux_scalars: tuple[Any, ...] | None = None,
        block_sparse_tensors: Any = None,
        block_sparse_tensors_bwd: Any = None,
        return_lse: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        return attend(q, k, v, causal), None

    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        qv: Tensor | None = None,
        cu_seqlens_q: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
        max_seqlen_q: int | None = None,
        max_seqlen_k: int | None = None,
        min_seqlen_k: int | None = None,
        seqused_q: Tensor | None = None,
        seqused_k: Tensor | None = None,
        gather_kv_indices: Tensor | None = None,
        page_table: Tensor | None = None,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int | None, int | None] = (None, None),
        learnable_sink: Tensor | None = None,
        softcap: float = 0.0,
        num_splits: int = 1,
        pack_gqa: bool | None = None,
        deterministic: bool = False,
        score_mod: Any = None,
        score_mod_bwd: Any = None,
        mask_mod: Any = None,
        block_sparse_tensors: Any = None,
        aux_tensors: list[Tensor] | None = None,
        aux_scalars: tuple[Any, ...] | None = None,
        return_lse: bool = False,
        scheduler_metadata: Any = None,
        seqlen_k_per_split: int | None = None,
        disable_scheduler_metadata: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        assert cu_seqlens_q is not None
        return _documents(lambda *one: attend(*one, causal), q, k, v, cu_seqlens_q), None

    return {"flash_attn_func": flash_attn_func, "flash_attn_varlen_func": flash_attn_varlen_func}


def install_apex(monkeypatch: pytest.MonkeyPatch, names: Sequence[str] = APEX) -> None:
    """apex, built with these of its extensions. pybind11 takes arguments by place only."""
    functions: dict[str, dict[str, Any]] = {
        "distributed_adam_cuda": {"multi_tensor_fused_adam": multi_tensor_fused_adam},
        "fused_weight_gradient_mlp_cuda": {"wgrad_gemm_accum_fp32": wgrad_gemm_accum_fp32},
        "fused_layer_norm_cuda": {
            "rms_forward_affine": rms_forward_affine,
            "rms_backward_affine": rms_backward_affine,
        },
    }
    for name in APEX:
        if name in names:
            module(monkeypatch, name, **functions[name])
        else:
            remove(monkeypatch, [name])


def wgrad_gemm_accum_fp32(input_2d: Tensor, d_output_2d: Tensor, d_weight: Tensor, /) -> None:
    """d_weight += d_output' input, read from raw pointers: rows must be contiguous, and the buffer fp32."""
    assert input_2d.is_contiguous()
    assert d_output_2d.is_contiguous()
    assert input_2d.dtype == d_output_2d.dtype
    assert d_weight.dtype == torch.float32
    d_weight += d_output_2d.float().t() @ input_2d.float()


def rms_forward_affine(x: Tensor, shape: Sequence[int], gamma: Tensor, epsilon: float, /) -> list[Tensor]:
    """The result and 1 / sqrt(mean(x^2) + epsilon), (rows,) in fp32."""
    assert x.is_contiguous()
    assert gamma.is_contiguous()
    assert tuple(gamma.shape) == tuple(shape) == tuple(x.shape[-len(shape) :])
    assert gamma.dtype == x.dtype, "the gain is read in the input's precision"
    inverse = (x.float().square().mean(-1) + epsilon).rsqrt()
    return [(x.float() * inverse[:, None] * gamma.float()).to(x.dtype), inverse]


def rms_backward_affine(
    dout: Tensor,
    inverse: Tensor,
    x: Tensor,
    shape: Sequence[int],
    gamma: Tensor,
    epsilon: float,
    memory_efficient: bool,
    /,
) -> list[Tensor]:
    """The gradients of the input and of the gain, both in their own precision."""
    assert all(one.is_contiguous() for one in (dout, inverse, x, gamma))
    assert not memory_efficient
    unit, g = x.float() * inverse[:, None], dout.float() * gamma.float()
    dx = (g - unit * (g * unit).mean(-1, keepdim=True)) * inverse[:, None]
    return [dx.to(x.dtype), (dout.float() * unit).sum(0).to(gamma.dtype)]


def multi_tensor_fused_adam(
    chunk_size: int,
    noop_flag: Tensor,
    tensor_lists: list[list[Tensor]],
    grad_scale: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    mode: int,
    bias_correction: int,
    weight_decay: float,
    /,
) -> None:
    """DistAdamFunctor on parameters, moments, gradients (times the scale) and rounded parameters; mode 1 is AdamW."""
    assert (chunk_size > 0, len(tensor_lists), mode, bias_correction) == (True, 5, 1, 1)
    assert noop_flag.dtype == torch.int32
    assert int(noop_flag) == 0
    assert (grad_scale.dtype, grad_scale.numel()) == (torch.float32, 1)
    for p, m, v, g, out in zip(*tensor_lists, strict=True):
        assert all(one.is_contiguous() and one.numel() == p.numel() < 2**31 for one in (p, m, v, g, out))
        assert p.dtype == m.dtype == v.dtype
        scaled = g * grad_scale
        m.lerp_(scaled, 1 - beta1)
        v.lerp_(scaled.square(), 1 - beta2)
        update = (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + eps) + weight_decay * p
        p.sub_(update, alpha=lr)
        out.copy_(p)
