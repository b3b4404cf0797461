"""The decoder-only transformer over [start][text][image]: one trunk, one head per modality.

Two modes: ``modern`` (rotary positions, query-key norm, SwiGLU, full causal attention) and ``paper`` (row and column
position embeddings, row, column and convolutional masks, GELU). Split heads are exact in both: the paper's joint
vocabulary with the other modality's logits never computed.

Axes: B rows, L text positions, N image tokens, T = L + N inputs (start and text take L + 1, the image N - 1: the
last image token is never read). Text id 0 is both padding and the end of the caption; every padded position has its
own learned embedding (paper, section 2.2), and an empty caption, all padding, is the null caption of guidance.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from dalle_model.attention import Attention, LayerCache, Norm, layer_kinds, rotary_table, sparse_mask
from dalle_model.config import ModelConfig
from dalle_model.errors import DataError, UsageError
from dalle_model.sparse_attention import SparseLayout
from dalle_model.tokenizers.base import ImageTokenizer

PAD = 0
LONG = 512
"""Positions above which attention over blocks of the picture is used on a CPU (paper mode)."""
IMAGE_PARTS = ("image_embed", "image_head", "row_embed", "column_embed", "level_embed", "level_head")
"""Parameters that only pictures move. ``position_embed`` is shared: its first L + 1 rows belong to start and text."""


class DalleShape(BaseModel):
    """What a transformer must know about its tokens; stored with the weights.

    code_levels: levels per dimension when codes are points of a lattice (fsq), else empty. Codes that share a
    coordinate then share part of their embedding and of their output vector.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_vocab: int
    max_text_tokens: int
    image_vocab: int
    grid: int
    code_levels: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: ImageTokenizer, text_vocab: int, max_text_tokens: int) -> "DalleShape":
        """The shape that fits an image tokenizer."""
        return cls(
            text_vocab=text_vocab,
            max_text_tokens=max_text_tokens,
            image_vocab=tokenizer.vocab_size,
            grid=tokenizer.grid,
            code_levels=tokenizer.code_levels,
        )

    @property
    def num_image_tokens(self) -> int:
        """N."""
        return self.grid**2


def level_map(vocab: int, levels: tuple[int, ...]) -> Tensor:
    """Which levels each lattice code has: float32 [vocab, sum(levels)] of zeros and ones, [vocab, 0] without levels.

    Code = sum of level_d * (product of the levels before d), as in ``FsqTokenizer.ids_of``.
    """
    codes, parts = torch.arange(vocab), []
    for count in levels:
        parts.append(F.one_hot(codes % count, count))
        codes = codes // count
    return torch.cat(parts, dim=1).float() if parts else torch.zeros(vocab, 0)


class SwiGlu(nn.Module):
    """down(silu(gate) * up), the down projection starting at zero (Shazeer 2020)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)
        nn.init.normal_(self.up.weight, std=dim**-0.5)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        if x.device.type == "cpu" and torch.is_grad_enabled():
            # two products instead of one: on their contiguous results the rest takes a third of the time
            gate, value = (F.linear(x, w) for w in self.up.weight.chunk(2))
        else:
            gate, value = self.up(x).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * value)
        return out


class GeluMlp(nn.Module):
    """down(gelu(up)), four times as wide inside, as in the paper's time; the down projection starts at zero."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)
        nn.init.normal_(self.up.weight, std=dim**-0.5)
        nn.init.zeros_(self.up.bias)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        out: Tensor = self.down(F.gelu(self.up(x)))
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP, each on a residual branch."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        modern = config.mode == "modern"
        norm = config.norm if modern else "affine"
        self.norm_attention = Norm(config.dim, norm)
        self.attention = Attention(config.dim, config.heads, norm, modern)
        self.norm_mlp = Norm(config.dim, norm)
        self.mlp = SwiGlu(config.dim, config.hidden) if modern else GeluMlp(config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def _mlp(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.dropout(self.mlp(self.norm_mlp(x)))
        return out

    def forward(self, x: Tensor, rotary: Tensor, seen: Tensor | SparseLayout | None = None) -> Tensor:
        """[B, T, dim] -> [B, T, dim]; see ``Attention``."""
        return self._mlp(x + self.dropout(self.attention(self.norm_attention(x), rotary, seen)))

    def prefill(self, x: Tensor, rotary: Tensor, cache: LayerCache, seen: Tensor | None = None) -> Tensor:
        """As ``forward`` for the first T positions, filling the cache."""
        return self._mlp(x + self.attention.prefill(self.norm_attention(x), rotary, cache, seen))

    def step(self, x: Tensor, rotary: Tensor, cache: LayerCache, position: int, seen: Tensor | None) -> Tensor:
        """One more position."""
        return self._mlp(x + self.attention.step(self.norm_attention(x), rotary, cache, position, seen))


@dataclass
class KVCache:
    """Keys and values of all layers and how many positions are filled."""

    layers: list[LayerCache]
    length: int = 0


class Dalle(nn.Module):
    """Text and image tokens to hidden states; ``text_logits`` and ``image_logits`` read them."""

    def __init__(self, config: ModelConfig, shape: DalleShape) -> None:
        super().__init__()
        self.config = config
        self.shape = shape
        self.directions: tuple[str, ...] = ()
        dim, num_prefix = config.dim, shape.max_text_tokens + 1
        modern = config.mode == "modern"
        self.start_embed = nn.Parameter(torch.randn(2, dim) * 0.02)  # text first, image first
        self.text_embed = nn.Embedding(shape.text_vocab, dim)
        self.pad_embed = nn.Parameter(torch.randn(shape.max_text_tokens, dim) * 0.02)
        self.image_embed = nn.Embedding(shape.image_vocab, dim)
        for table in (self.text_embed, self.image_embed):
            nn.init.normal_(table.weight, std=0.02)
        num_places = num_prefix + (shape.num_image_tokens if modern else 0)
        self.position_embed = nn.Parameter(torch.randn(num_places, dim) * 0.02)
        if not modern:
            self.row_embed = nn.Parameter(torch.randn(shape.grid, dim) * 0.02)
            self.column_embed = nn.Parameter(torch.randn(shape.grid, dim) * 0.02)
        if shape.code_levels:  # an unused parameter would leave the ranks of a group waiting for its gradient
            self.level_embed = nn.Parameter(torch.randn(sum(shape.code_levels), dim) * 0.02)
            self.level_head = nn.Parameter(torch.zeros(sum(shape.code_levels), dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_out = Norm(dim, config.norm if modern else "affine")
        self.text_head = nn.Linear(dim, shape.text_vocab, bias=False)
        self.image_head = nn.Linear(dim, shape.image_vocab, bias=False)
        for head in (self.text_head, self.image_head):
            nn.init.zeros_(head.weight)  # the first loss is exactly ln K
        self._constants(num_prefix, modern)

    def _constants(self, num_prefix: int, modern: bool) -> None:
        """Buffers that follow from the shape and are not stored."""
        shape = self.shape
        self.level_map: Tensor
        self.rotary: Tensor
        self.masks: Tensor
        self.register_buffer("level_map", level_map(shape.image_vocab, shape.code_levels), persistent=False)
        rotary = rotary_table(num_prefix, shape.grid, self.config.dim // self.config.heads)
        self.register_buffer("rotary", rotary, persistent=False)
        kinds = [] if modern else sorted(set(layer_kinds(self.config.depth)))
        masks = [sparse_mask(kind, num_prefix, shape.grid) for kind in kinds]
        self.register_buffer("masks", torch.stack(masks) if masks else torch.zeros(0), persistent=False)
        # Measured on a CPU: 1.7 to 4.3 times as fast as the dense mask at 257 + 1024 positions, slower than it at a grid
        # of 16 and below, where two products over the whole square cost less than the gathering.
        pays = masks and not masks[0].is_meta and len(masks[0]) > LONG
        self.layouts = nn.ModuleList(
            SparseLayout(mask, num_prefix, shape.grid, transposed=kind == "column")
            for kind, mask in zip(kinds, masks, strict=True)
            if pays
        )
        self._mask_of = [None if modern else kinds.index(kind) for kind in layer_kinds(self.config.depth)]

    @property
    def num_parameters(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.parameters())

    def require(self, direction: str) -> None:
        """UsageError when it is known what the model was trained for and ``direction`` is not part of it.

        ``directions`` holds text_to_image, image_to_text and text, as ``TrainConfig.directions``; empty = not known.
        """
        if self.directions and direction not in self.directions:
            remedy = {
                "text_to_image": "train it on pictures too: `dalle fit TOKENS --init-from REF`",
                "image_to_text": "train with train.image_first_share above 0",
                "text": "train with train.text_loss_share above 0",
            }[direction]
            known = " and ".join(d.replace("_", " ") for d in self.directions)
            raise UsageError(f"this model was trained for {known}, not for {direction.replace('_', ' ')}; {remedy}")

    def decoder_layers(self) -> list[tuple[Block, Tensor | None]]:
        """Each block with the positions its attention may see; None = all before."""
        blocks = cast("list[Block]", list(self.blocks))
        return [(b, None if m is None else self.masks[m]) for b, m in zip(blocks, self._mask_of, strict=True)]

    def _seen(self, device: str) -> list[tuple[Block, Tensor | SparseLayout | None]]:
        """Each block with what its attention over a whole sequence reads: blocks of the picture where that pays."""
        sparse = device == "cpu" and len(self.layouts) > 0
        layouts = cast("list[SparseLayout]", list(self.layouts))
        return [
            (block, None if seen is None or mask is None else layouts[mask] if sparse else seen[:-1, :-1])
            for (block, seen), mask in zip(self.decoder_layers(), self._mask_of, strict=True)
        ]

    def _image_positions(self) -> Tensor:
        """Position vectors of the image tokens, [N, dim]."""
        if self.config.mode == "modern":
            return self.position_embed[self.shape.max_text_tokens + 1 :]
        grid = self.shape.grid
        return self.row_embed.repeat_interleave(grid, 0) + self.column_embed.repeat(grid, 1)

    def embed_text(self, text: Tensor, first: int = 0) -> Tensor:
        """Integer text [B, n] at places first..first+n-1 -> [B, n, dim]: tokens, or where there is none the place's pad."""
        end = first + text.shape[1]
        tokens = torch.where((text == PAD).unsqueeze(-1), self.pad_embed[first:end], self.text_embed(text))
        return tokens + self.position_embed[first + 1 : end + 1]

    def embed_image(self, image: Tensor, first: int = 0) -> Tensor:
        """Image ids [B, n] that stand at places first..first+n-1 of the picture -> [B, n, dim]."""
        table, positions = self.image_tables()
        return F.embedding(image, table) + positions[first : first + image.shape[1]]

    def image_tables(self) -> tuple[Tensor, Tensor]:
        """(Input vectors of the image codes [image_vocab, dim], vectors of the places [N, dim]), float32."""
        table: Tensor = self.image_embed.weight
        if self.shape.code_levels:
            table = table + self.level_map @ self.level_embed
        return table, self._image_positions()

    def _start(self, rows: int, image_first: bool) -> Tensor:
        return (self.start_embed[int(image_first)] + self.position_embed[0]).expand(rows, 1, -1)

    def image_vectors(self) -> Tensor:
        """Output vectors of the image codes, float32 [image_vocab, dim]: image logits are hidden @ vectors.T."""
        vectors: Tensor = self.image_head.weight
        return vectors + self.level_map @ self.level_head if self.shape.code_levels else vectors

    def forward(self, text: Tensor, image: Tensor | None, image_first: bool = False) -> Tensor:
        """Text ids int64 [B, L] (0 = padding) and image ids int64 [B, N] -> hidden states [B, L + N, dim].

        Position t < L predicts text token t and position L + n image token n; with ``image_first`` (image to text,
        modern mode only) position n < N predicts image token n and position N + t text token t. Without an image the
        model reads text alone, as a GPT does: [B, L, dim], equal to the first L of the whole sequence.
        """
        x, rotary = self.inputs(text, image, image_first)
        for block, seen in self._seen(x.device.type):
            x = block(x, rotary, None if seen is None or image is None else seen)  # text alone is causal
        hidden: Tensor = self.norm_out(x)
        return hidden

    def inputs(self, text: Tensor, image: Tensor | None, image_first: bool = False) -> tuple[Tensor, Tensor]:
        """What ``forward`` feeds to the first block: (vectors [B, T, dim], rotary table [2, T, D / 2])."""
        start, length = self._start(len(text), image_first), self.shape.max_text_tokens
        if image is None:
            x, rotary = torch.cat([start, self.embed_text(text[:, :-1])], dim=1), self.rotary[:, :length]
        elif image_first:
            x = torch.cat([start, self.embed_image(image), self.embed_text(text[:, :-1])], dim=1)
            rotary = torch.cat([self.rotary[:, :1], self.rotary[:, length + 1 :], self.rotary[:, 1:length]], dim=1)
        else:
            x = torch.cat([start, self.embed_text(text), self.embed_image(image[:, :-1])], dim=1)
            rotary = self.rotary[:, :-1]
        return x, rotary

    def split(self, hidden: Tensor, image_first: bool = False) -> tuple[Tensor, Tensor]:
        """Hidden states [B, L + N, dim] -> (those that predict text [B, L, dim], those that predict image [B, N, dim])."""
        if image_first:
            num_image = self.shape.num_image_tokens
            return hidden[:, num_image:], hidden[:, :num_image]
        num_text = self.shape.max_text_tokens
        return hidden[:, :num_text], hidden[:, num_text:]

    def text_logits(self, hidden: Tensor, image_first: bool = False) -> Tensor:
        """Hidden states [B, L + N, dim] -> float32 logits [B, L, text_vocab]."""
        logits: Tensor = self.text_head(self.split(hidden, image_first)[0])
        return logits.float()

    def image_logits(self, hidden: Tensor, image_first: bool = False) -> Tensor:
        """Hidden states [B, L + N, dim] -> float32 logits [B, N, image_vocab]."""
        return F.linear(self.split(hidden, image_first)[1], self.image_vectors()).float()

    def new_cache(self, rows: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        """An empty cache for ``rows`` sequences of T positions."""
        size = (rows, self.config.heads, self.rotary.shape[1] - 1, self.config.dim // self.config.heads)
        zeros = [LayerCache(*(torch.zeros(size, dtype=dtype, device=device) for _ in range(2))) for _ in self.blocks]
        return KVCache(zeros)

    def prefill(self, text: Tensor, cache: KVCache, image: Tensor | None = None) -> Tensor:
        """Read captions [B, L], and the first n < N image tokens where given [B, n], into an empty cache.

        Returns float32 logits [B, image_vocab] of the next image token.
        """
        parts = [self._start(len(text), False), self.embed_text(text)]
        if image is not None and image.shape[1]:
            parts.append(self.embed_image(image))
        x = torch.cat(parts, dim=1)
        hidden = self._read(x, self.rotary[:, : x.shape[1]], cache, causal=len(parts) == 2)
        return F.linear(hidden, self.image_vectors()).float()

    def prefill_text(self, text: Tensor, cache: KVCache) -> Tensor:
        """Read the first n < L text tokens [B, n] into an empty cache -> float32 logits [B, text_vocab] of the next one."""
        x = torch.cat([self._start(len(text), False), self.embed_text(text)], dim=1)
        logits: Tensor = self.text_head(self._read(x, self.rotary[:, : x.shape[1]], cache))
        return logits.float()

    def prefill_image(self, image: Tensor, cache: KVCache) -> Tensor:
        """Read pictures [B, N] into an empty cache, image first -> float32 logits [B, text_vocab] of the first text token."""
        x = torch.cat([self._start(len(image), True), self.embed_image(image)], dim=1)
        rotary = torch.cat([self.rotary[:, :1], self.rotary[:, self.shape.max_text_tokens + 1 :]], dim=1)
        logits: Tensor = self.text_head(self._read(x, rotary, cache))
        return logits.float()

    def _read(self, x: Tensor, rotary: Tensor, cache: KVCache, causal: bool = True) -> Tensor:
        """Inputs [B, n, dim] into an empty cache -> the last hidden state [B, dim]; over text every mask is causal."""
        length = x.shape[1]
        for (block, seen), layer in zip(self.decoder_layers(), cache.layers, strict=True):
            x = block.prefill(x, rotary, layer, None if causal or seen is None else seen[:length, :length])
        cache.length = length
        hidden: Tensor = self.norm_out(x[:, -1])
        return hidden

    def step_text(self, text: Tensor, place: int, cache: KVCache) -> Tensor:
        """Text ids [B] at ``place`` (0-based), after what the cache holds -> float32 logits [B, text_vocab] of place + 1."""
        x, position = self.embed_text(text.unsqueeze(1), place), cache.length
        for (block, _), layer in zip(self.decoder_layers(), cache.layers, strict=True):
            x = block.step(x, self.rotary[:, place + 1 : place + 2], layer, position, None)
        cache.length = position + 1
        logits: Tensor = self.text_head(self.norm_out(x[:, 0]))
        return logits.float()

    def step(self, image: Tensor, place: int, cache: KVCache) -> Tensor:
        """Image ids [B] at ``place`` (0-based) -> float32 logits [B, image_vocab] of place + 1."""
        x = self.embed_image(image.unsqueeze(1), place)
        position = self.shape.max_text_tokens + 1 + place
        for (block, seen), layer in zip(self.decoder_layers(), cache.layers, strict=True):
            x = block.step(x, self.rotary[:, position : position + 1], layer, position, seen)
        cache.length = position + 1
        return F.linear(self.norm_out(x[:, 0]), self.image_vectors()).float()


def build_dalle(config: ModelConfig, shape: DalleShape, generator: torch.Generator) -> Dalle:
    """A transformer whose fresh weights are a pure function of the generator's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        return Dalle(config, shape)


def dalle_to_bytes(model: Dalle) -> tuple[bytes, bytes]:
    """(weights as safetensors, config as JSON)."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    config = {
        "model": model.config.model_dump(mode="json"),
        "shape": model.shape.model_dump(mode="json"),
        "directions": list(model.directions),
    }
    return save_tensors(tensors), json.dumps(config, sort_keys=True, indent=1).encode()


def dalle_from_bytes(weights: bytes, config: bytes) -> Dalle:
    """The inverse of ``dalle_to_bytes``, in eval mode. DataError when weights and config do not fit each other."""
    parsed = json.loads(config)
    model = Dalle(ModelConfig(**parsed["model"]), DalleShape(**parsed["shape"]))
    model.directions = tuple(parsed.get("directions", ()))
    try:
        model.load_state_dict(load_tensors(weights))
    except RuntimeError as error:
        raise DataError(
            f"transformer weights do not fit their config: {str(error).splitlines()[0]}; take both from one artifact"
        ) from error
    return model.eval()


def save(model: Dalle, folder: Path) -> None:
    """Write ``weights.safetensors`` and ``config.json`` into ``folder`` (created when absent)."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, config = dalle_to_bytes(model)
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "config.json").write_bytes(config)


def load(folder: Path) -> Dalle:
    """Read what ``save`` wrote."""
    return dalle_from_bytes((folder / "weights.safetensors").read_bytes(), (folder / "config.json").read_bytes())
