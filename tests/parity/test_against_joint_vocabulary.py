"""Paper mode against the paper's own formulation, written plainly: one vocabulary, one table, one head, dense masks."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dalle_model.attention import layer_kinds
from dalle_model.config import ModelConfig, OptimConfig, TrainConfig
from dalle_model.dalle import Block, Dalle, DalleShape, build_dalle
from dalle_model.joint_vocabulary import from_joint, joint_embedding, joint_logits, joint_size, to_joint
from dalle_model.objectives import DalleObjective
from dalle_model.runtime import Runtime
from dalle_model.token_batches import TokenRows

SHAPE = DalleShape(text_vocab=17, max_text_tokens=5, image_vocab=24, grid=4)
TEXT = torch.tensor([[3, 4, 5, 0, 0], [7, 0, 0, 0, 0], [9, 8, 2, 1, 16]])
IMAGE = torch.randint(24, (3, 16), generator=torch.Generator().manual_seed(0))


def paper_model() -> Dalle:
    config = ModelConfig(dim=32, depth=5, heads=2, mode="paper")
    model = build_dalle(config, SHAPE, Runtime().generator(0)).eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    return model


def sees(kind: str, query: int, key: int, grid: int, prefix: int, kernel: int = 11) -> bool:
    """The masks in the paper's words (section 2.2, figure 11), one pair at a time; raster positions."""
    if key > query:
        return False
    if key < prefix:
        return True
    place, other = query - prefix, key - prefix
    row, column = divmod(place, grid)
    if kind == "row":  # back to the token directly above
        return place - other <= grid
    if kind == "column":  # rows and columns exchanged: back to the left neighbour, of what is not in the future
        return column * grid + row - (other % grid * grid + other // grid) in range(grid + 1) and (
            other % grid == column or other == place - 1
        )
    half = kernel // 2  # causal window that wraps around at the sides
    return any(place - other == r * grid + c for r in range(half + 1) for c in range(-half, half + 1))


def plain_forward(model: Dalle, joint: Tensor) -> Tensor:
    """The paper's decoder over joint ids: table, positions, masked softmax over one square, GELU, layer norms."""
    length, grid, prefix = SHAPE.max_text_tokens, SHAPE.grid, SHAPE.max_text_tokens + 1
    places = torch.arange(grid**2)
    positions = torch.cat(
        [model.position_embed[1:], model.row_embed[places // grid] + model.column_embed[places % grid]]
    )
    x = F.embedding(joint, joint_embedding(model)) + positions
    x = torch.cat([(model.start_embed[0] + model.position_embed[0]).expand(len(x), 1, -1), x[:, :-1]], dim=1)
    total = length + grid**2
    for block, kind in zip(model.blocks, layer_kinds(model.config.depth), strict=True):
        assert isinstance(block, Block)
        mask = torch.tensor([[sees(kind, i, j, grid, prefix) for j in range(total)] for i in range(total)])
        h = F.layer_norm(x, (32,), block.norm_attention.gain, block.norm_attention.bias, 1e-6)
        q, k, v = (t.view(*t.shape[:2], 2, 16).transpose(1, 2) for t in block.attention.qkv(h).chunk(3, -1))
        weights = (q @ k.mT / 4).masked_fill(~mask, -torch.inf).softmax(-1)
        x = x + block.attention.out((weights @ v).transpose(1, 2).flatten(2))
        h = F.layer_norm(x, (32,), block.norm_mlp.gain, block.norm_mlp.bias, 1e-6)
        x = x + block.mlp.down(F.gelu(block.mlp.up(h)))
    return F.layer_norm(x, (32,), model.norm_out.gain, model.norm_out.bias, 1e-6)


def test_hidden_states_and_loss_are_those_of_one_vocabulary() -> None:
    model = paper_model()
    joint = to_joint(TEXT, IMAGE, SHAPE)
    hidden = plain_forward(model, joint)
    torch.testing.assert_close(model(TEXT, IMAGE), hidden, rtol=1e-4, atol=1e-4)
    # the paper's loss: cross-entropy over the joint vocabulary, each kind over its own count, 1/8 and 7/8
    nll = F.cross_entropy(joint_logits(model, hidden).transpose(1, 2), joint, reduction="none")
    trained = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)  # tokens and the end
    expected = nll[:, :5][trained].mean() / 8 + nll[:, 5:].mean() * 7 / 8
    rows = TokenRows(TEXT.numpy().astype("uint16"), IMAGE.numpy().astype("uint16"), torch.ones(3).numpy())
    config = TrainConfig(condition_dropout=0.0, optim=OptimConfig(batch_size=3))
    objective = DalleObjective(model, rows, config, Runtime())
    torch.testing.assert_close(objective.loss(model, objective.batch(0), 0).total, expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_one_vocabulary() -> None:
    model = paper_model()
    weights = torch.linspace(-1, 1, 3 * 21 * 32).view(3, 21, 32)
    grads = []
    for hidden in (model(TEXT, IMAGE), plain_forward(model, to_joint(TEXT, IMAGE, SHAPE))):
        model.zero_grad()
        (hidden * weights).sum().backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and "pad_embed" in grads[0]
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-3, atol=1e-4, msg=name)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 16), max_size=5), st.integers(0, 10**6))
def test_joint_ids_read_back(caption: list[int], seed: int) -> None:
    text = torch.tensor([caption + [0] * (5 - len(caption))])
    image = torch.randint(24, (1, 16), generator=torch.Generator().manual_seed(seed))
    joint = to_joint(text, image, SHAPE)
    assert int(joint.max()) < joint_size(SHAPE) == 17 + 5 + 24
    assert all(torch.equal(a, b) for a, b in zip(from_joint(joint, SHAPE), (text, image), strict=True))
