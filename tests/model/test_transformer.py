import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from model.kernels import choose
from model.mesh import Axis, Mesh
from model.parameters import flat_layout, local_pieces
from model.transformer import WHOLE, Stage
from model.zero import AdamW
from specs.layout import Layout
from specs.model import ModelSpec
from tests.model.test_kernels import relative
from tests.support import samples

SEED = 11


def stage_of(
    spec: ModelSpec,
    precision: str = "fp32",
    mesh: Mesh = Mesh(),  # noqa: B008
    device: str = "cpu",
    layout: Layout = WHOLE,
    end_of_document: int | None = None,
) -> Stage:
    kernels = choose("auto", device)
    return Stage(
        spec,
        precision=precision,
        mesh=mesh,
        kernels=kernels,
        device=device,
        layout=layout,
        end_of_document=end_of_document,
    )


def batch(spec: ModelSpec, sequences: int = 3) -> torch.Tensor:
    """int64 tokens (B, S + 1)."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(spec.vocab, (sequences, spec.context + 1), generator=generator)


def _llama(spec: ModelSpec, weights: dict[str, torch.Tensor]) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=spec.vocab,
        hidden_size=spec.width,
        intermediate_size=spec.ffn,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        max_position_embeddings=spec.context,
        rms_norm_eps=spec.norm_eps,
        rope_theta=spec.rope_theta,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_logits_loss_and_gradients_are_those_of_transformers(kv_heads: int) -> None:
    """Norm-wise 1e-5 per tensor: about 100 roundings of fp32, of which transformers' own rotary angles take several."""
    spec = samples.model(heads=4, kv_heads=kv_heads, init_std=0.1, context=150)
    ours = stage_of(spec)
    optimizer = AdamW(ours, Axis(), samples.optim())
    optimizer.initialize(SEED)
    theirs = _llama(spec, {box.piece.name: box.master.clone() for box in optimizer.boxes()})
    tokens, targets = batch(spec)[:, :-1], batch(spec)[:, 1:]
    logits = theirs(tokens).logits
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    assert relative(ours.logits(tokens), logits) < 1e-5
    our_loss = ours.loss(tokens, targets, targets.numel())
    our_loss.backward()
    assert our_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for local in ours.local_parameters.values():
        found = local.of(ours.gradients).split([piece.rows for piece in local.pieces])
        for piece, gradient in zip(local.pieces, found, strict=True):
            assert relative(gradient, gradients.pop(piece.name).double()) < 1e-5, piece.name
    assert not gradients


@pytest.mark.parametrize(
    "changes", [{}, {"kv_heads": 2}, {"layers": 30, "width": 4096, "heads": 32, "kv_heads": 8, "ffn": 11008}]
)
def test_the_spec_counts_the_parameters(changes: dict[str, int]) -> None:
    spec = samples.model(**changes)
    stage = stage_of(spec, "bf16", device="meta")
    assert sum(parameter.numel() for parameter in stage.parameters()) == spec.params
    named = {
        piece.name: math.prod(piece.shape)
        for local in stage.local_parameters.values()
        for piece in local.pieces
    }
    assert sum(named.values()) == spec.params


def test_pieces_of_tensor_parallel_ranks_tile_every_tensor() -> None:
    """The description that weights, optimizer state and checkpoints go by is ready for layouts that cannot run yet."""
    spec = samples.model(heads=4, kv_heads=2)
    covered: dict[str, torch.Tensor] = {}
    for rank in range(2):
        for pieces in local_pieces(spec, Axis(2, rank)).values():
            for piece in pieces:
                seen = covered.setdefault(piece.name, torch.zeros(piece.shape, dtype=torch.int64))
                rows, columns = (
                    slice(piece.row, piece.row + piece.rows),
                    slice(piece.col, piece.col + piece.cols),
                )
                seen[(rows, columns)[: len(piece.shape)]] += 1
    split = {name: seen for name, seen in covered.items() if seen.dim() == 2}
    assert all((seen == 1).all() for seen in split.values())
    assert all((covered[name] == 2).all() for name in covered.keys() - split.keys())  # norms are held by all


@pytest.mark.parametrize("dp", [1, 3, 8])
def test_parameters_lie_side_by_side_and_matrices_first(dp: int) -> None:
    spec = samples.model()
    locals_ = list(flat_layout(local_pieces(spec, Axis()), dp).values())
    assert [local.start for local in locals_] == [0, *(local.stop for local in locals_[:-1])]
    assert all((local.stop - local.start) % (dp * local.cols) == 0 for local in locals_)
    decays = [local.decays for local in locals_]
    assert decays == sorted(decays, reverse=True)
    for part in (True, False):
        names = [local.pieces[0].name for local in locals_ if local.decays is part]
        deep = [piece[0].name for piece in local_pieces(spec, Axis()).values()]
        assert names == [name for name in deep if name in names]


def test_shorter_sequences_see_the_first_positions() -> None:
    spec = samples.model()
    stage = stage_of(spec, "fp64")
    AdamW(stage, Axis(), samples.optim()).initialize(SEED)
    tokens = batch(spec)[:, :-1]
    whole = stage.logits(tokens)
    torch.testing.assert_close(stage.logits(tokens[:, :37]), whole[:, :37], rtol=0, atol=1e-13)


def test_micro_batches_add_up_to_the_batch() -> None:
    spec = samples.model()
    stage = stage_of(spec, "fp64")
    AdamW(stage, Axis(), samples.optim()).initialize(SEED)
    tokens, targets = batch(spec, 4)[:, :-1], batch(spec, 4)[:, 1:]
    whole = stage.loss(tokens, targets, targets.numel())
    whole.backward()
    gradients = stage.gradients.clone()
    stage.gradients.zero_()
    shares = [stage.loss(tokens[i : i + 2], targets[i : i + 2], targets.numel()) for i in (0, 2)]
    for share in shares:
        share.backward()
    assert sum(share.item() for share in shares) == pytest.approx(whole.item(), rel=1e-14)
    assert relative(stage.gradients, gradients) < 1e-13


def test_bf16_is_near_fp32_and_its_gradients_are_fp32() -> None:
    """bf16 keeps 8 bits, so every tensor between layers is off by up to 2^-9; here the errors of 2 layers add up."""
    spec = samples.model(init_std=0.1)
    gradients, losses = [], []
    for precision in ("fp32", "bf16"):
        stage = stage_of(spec, precision)
        AdamW(stage, Axis(), samples.optim()).initialize(SEED)
        loss = stage.loss(batch(spec)[:, :-1], batch(spec)[:, 1:], 3 * spec.context)
        loss.backward()
        losses.append(loss.item())
        gradients.append(stage.gradients)
    assert gradients[1].dtype == torch.float32
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert relative(gradients[1], gradients[0].double()) < 0.03


def test_weights_that_were_never_set_do_not_pass_for_weights() -> None:
    spec = samples.model()
    assert stage_of(spec).logits(batch(spec)[:, :-1]).isnan().all()


def test_evaluation_keeps_no_graph_and_touches_no_gradient() -> None:
    spec = samples.model()
    stage = stage_of(spec)
    AdamW(stage, Axis(), samples.optim()).initialize(SEED)
    with torch.no_grad():
        loss = stage.loss(batch(spec)[:, :-1], batch(spec)[:, 1:], 3 * spec.context)
    assert not loss.requires_grad
    assert not stage.gradients.any()
    assert float(loss) == pytest.approx(
        math.log(spec.vocab), rel=0.01
    )  # near-zero logits: every token as likely


def test_a_stage_holds_what_its_layout_gives_it_under_global_names() -> None:
    spec = samples.model(layers=5)
    layout = WHOLE.model_copy(update={"pp": 2, "interleave": 2})
    held = []
    for rank in range(2):
        stage = stage_of(spec, mesh=Mesh(pp=Axis(2, rank)), layout=layout)
        assert [(chunk.blocks, chunk.first, chunk.last) for chunk in stage.chunks] == [
            (blocks, blocks.start == 0, blocks.stop == 5) for blocks in layout.blocks(5)[rank::2]
        ]
        held.append(set(stage.local_parameters))
        assert {name for name, _ in stage.named_parameters()} == set(stage.local_parameters)
    assert not held[0] & held[1]
    assert held[0] | held[1] == set(stage_of(spec).local_parameters)


def test_chunks_in_a_row_are_the_whole_model() -> None:
    """The same arithmetic in the same order: equal to the last bit, loss and gradients."""
    spec = samples.model(layers=3)
    layout = WHOLE.model_copy(update={"pp": 2, "stage_layers": (1, 2)})
    whole, *stages = [
        stage_of(spec, mesh=mesh, layout=cut)
        for mesh, cut in ((Mesh(), WHOLE), (Mesh(pp=Axis(2, 0)), layout), (Mesh(pp=Axis(2, 1)), layout))
    ]
    for stage in (whole, *stages):
        AdamW(stage, Axis(), samples.optim()).initialize(SEED)
    tokens, targets = batch(spec)[:, :-1], batch(spec)[:, 1:]
    loss = whole.loss(tokens, targets, 100)
    loss.backward()
    sent = stages[0].chunks[0](tokens)
    assert sent.shape == stages[0].boundary(3, spec.context)
    received = sent.detach().requires_grad_()
    ours = stages[1].chunks[0](received, targets, 100)
    ours.backward()
    sent.backward(received.grad)
    assert torch.equal(ours, loss)
    gradients = dict(whole.named_parameters())
    for name, parameter in [pair for stage in stages for pair in stage.named_parameters()]:
        assert torch.equal(parameter.grad, gradients[name].grad)


@pytest.mark.parametrize(
    ("mesh", "changes", "message"),
    [
        (Mesh(pp=Axis(2, 0)), {}, "the mesh has pp 2"),
        (Mesh(pp=Axis(9, 0)), {"pp": 9}, "9 pipeline stages are more than the 2 layers"),
        (Mesh(tp=Axis(3, 0)), {"tp": 3}, "not a multiple of tp 3"),
    ],
)
def test_what_cannot_be_cut_so_is_refused(mesh: Mesh, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stage_of(samples.model(), mesh=mesh, layout=WHOLE.model_copy(update=changes))
