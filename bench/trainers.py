"""Trainers of one LLaMA shape, ours and its peers, each a function from a step's tokens to its loss.

    ours      the engine: Stage, its kernels, AdamW with fp32 masters
    llama     transformers' LlamaForCausalLM in a plain loop: autocast for bf16, fused AdamW, clipping
    nanogpt   the same model as nanoGPT writes models: torch's modules, F.scaled_dot_product_attention, F.cross_entropy

All sum the gradients of their micro-batches, clip their norm at 1 and take one AdamW step. In bf16 the peers keep fp32
weights under autocast, as their authors do; ours has bf16 weights, fp32 gradients and fp32 masters.

B batch    S sequence    T = S + 1, the last one being only a target    H width
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.kernels import Kernels, choose, shape_of
from model.mesh import Mesh
from model.transformer import Stage
from model.zero import AdamW
from specs.model import ModelSpec
from specs.optim import OptimSpec

Step = Callable[[Tensor], float]
"""(tokens_BT) -> the step's mean loss before its update, nats per token."""
LEARNING_RATE, WEIGHT_DECAY, BETAS = 1e-4, 0.1, (0.9, 0.95)
"""DeepSeek LLM, section 2.3; the rate is small, since what is measured is time."""


def ours(
    spec: ModelSpec, precision: str, device: str, micro_batch: int, kernels: Kernels | None = None
) -> Step:
    """Our engine on one device."""
    torch.manual_seed(0)
    chosen = kernels or choose("auto", device, precision, shape_of(spec, 1))
    stage = Stage(spec, precision=precision, mesh=Mesh(), kernels=chosen, device=device)
    optimizer = AdamW(
        stage,
        Mesh().dp,
        OptimSpec(
            steps=2,
            batch_sequences=1,
            peak_lr=LEARNING_RATE,
            warmup_steps=1,
            betas=BETAS,
            weight_decay=WEIGHT_DECAY,
        ),
    )
    _randomize(optimizer, spec)

    def step(tokens_BT: Tensor) -> float:
        total = torch.zeros((), dtype=torch.float64, device=device)
        for rows_BT in tokens_BT.split(micro_batch):
            loss = stage.loss(rows_BT[:, :-1], rows_BT[:, 1:], tokens_BT[:, 1:].numel())
            loss.backward()
            total += loss.detach()
        optimizer.step(LEARNING_RATE)
        return float(total)

    return step


def _randomize(optimizer: AdamW, spec: ModelSpec) -> None:
    """As `AdamW.start`, but drawn on the device: a matter of milliseconds."""
    for box in optimizer.boxes():
        if box.master.ndim == 1:
            box.master.fill_(1.0)
        else:
            box.master.normal_(0.0, spec.init_std)
    optimizer.sync_parameters()


def llama(spec: ModelSpec, precision: str, device: str, micro_batch: int, *, compiled: bool = False) -> Step:
    """transformers' Llama, from its configuration, with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=spec.width,
            intermediate_size=spec.ffn,
            num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads,
            num_key_value_heads=spec.kv_heads,
            vocab_size=spec.vocab,
            max_position_embeddings=spec.context,
            rms_norm_eps=spec.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
            initializer_range=spec.init_std,
            tie_word_embeddings=False,
            use_cache=False,
            attn_implementation="sdpa",
        )
    )

    def logits(module: nn.Module, tokens_BS: Tensor) -> Tensor:
        return module(input_ids=tokens_BS).logits  # type: ignore[no-any-return]

    return _plain_loop(model, logits, precision, device, micro_batch, compiled)


def nanogpt(
    spec: ModelSpec, precision: str, device: str, micro_batch: int, *, compiled: bool = False
) -> Step:
    """The model written plainly."""
    torch.manual_seed(0)
    return _plain_loop(
        _Plain(spec), lambda module, tokens_BS: module(tokens_BS), precision, device, micro_batch, compiled
    )


def _plain_loop(
    model: nn.Module,
    logits: Callable[[nn.Module, Tensor], Tensor],
    precision: str,
    device: str,
    micro_batch: int,
    compiled: bool,
) -> Step:
    model.to(device).train()
    matrices = [one for one in model.parameters() if one.ndim > 1]
    vectors = [one for one in model.parameters() if one.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )

    def loss_of(tokens_BS: Tensor, targets_BS: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            logits_RV = logits(model, tokens_BS).flatten(0, 1)
            return F.cross_entropy(logits_RV.float(), targets_BS.reshape(-1))

    mean: Any = torch.compile(loss_of) if compiled else loss_of

    def step(tokens_BT: Tensor) -> float:
        total = torch.zeros((), device=device)
        parts = tokens_BT.split(micro_batch)
        for rows_BT in parts:
            loss = mean(rows_BT[:, :-1].contiguous(), rows_BT[:, 1:].contiguous()) / len(parts)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(total)

    return step


class _Plain(nn.Module):
    """A LLaMA in torch's own modules."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embedding = nn.Embedding(spec.vocab, spec.width)
        self.blocks = nn.ModuleList(_PlainBlock(spec) for _ in range(spec.layers))
        self.norm = nn.RMSNorm(spec.width, spec.norm_eps)
        self.head = nn.Linear(spec.width, spec.vocab, bias=False)
        frequency = spec.rope_theta ** (-torch.arange(0, spec.head_dim, 2) / spec.head_dim)
        angle_SK = torch.outer(torch.arange(spec.context), frequency).repeat(1, 2)
        self.register_buffer("cos", angle_SK.cos())
        self.register_buffer("sin", angle_SK.sin())
        for one in self.parameters():
            if one.ndim > 1:
                nn.init.normal_(one, std=spec.init_std)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        x = self.embedding(tokens_BS)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


class _PlainBlock(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.heads = (spec.heads, spec.kv_heads, spec.kv_heads)
        kv = spec.kv_heads * spec.head_dim
        self.norm_1, self.norm_2 = (nn.RMSNorm(spec.width, spec.norm_eps) for _ in range(2))
        self.qkv = nn.Linear(spec.width, spec.width + 2 * kv, bias=False)
        self.out = nn.Linear(spec.width, spec.width, bias=False)
        self.gate = nn.Linear(spec.width, spec.ffn, bias=False)
        self.up = nn.Linear(spec.width, spec.ffn, bias=False)
        self.down = nn.Linear(spec.ffn, spec.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.out(self._attend(self.qkv(self.norm_1(x)), cos, sin))
        y = self.norm_2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))

    def _attend(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, sequence, _ = qkv.shape
        parts = qkv.view(batch, sequence, sum(self.heads), -1).transpose(1, 2).split(self.heads, dim=1)
        q, k = ((x * cos + _turned(x) * sin).to(x.dtype) for x in parts[:2])
        grouped = self.heads[0] != self.heads[1]
        mixed = F.scaled_dot_product_attention(q, k, parts[2], is_causal=True, enable_gqa=grouped)
        return mixed.transpose(1, 2).reshape(batch, sequence, -1)


def _turned(x: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return torch.cat((-high, low), dim=-1)
