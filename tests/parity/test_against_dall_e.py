"""Our dVAE against the published ones: transformers' FlavaImageCodebook, and modules pickled as OpenAI's were."""

import os
import sys
import types
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from support.data_steps import Data
from torch import Tensor, nn

from dalle_model.config import ImportTokenizerConfig
from dalle_model.errors import DataError
from dalle_model.reference_weights import from_flava_codebook, load_openai_dvae
from dalle_model.tokenizers.dvae import argmax_codes, map_pixels
from dalle_model.tokenizers.registry import tokenizer_from_bytes
from tasks.stages import IMPORT_TOKENIZER

pytestmark = pytest.mark.xdist_group("transformers")  # the first use of a model imports for seconds


@pytest.mark.parametrize("blocks", [1, 2])
def test_flava_codebook_gives_the_same_logits_and_ids(blocks: int) -> None:
    torch.manual_seed(0)
    reference = transformers.FlavaImageCodebook(
        transformers.FlavaImageCodebookConfig(hidden_size=32, vocab_size=512, num_blocks_per_group=blocks)
    )
    with torch.no_grad():
        for p in reference.parameters():  # initial biases are zero and would hide a wrong one
            p.normal_(std=0.1)
    encoder = from_flava_codebook(reference)
    mapped = map_pixels(torch.rand(2, 3, 48, 64))
    with torch.no_grad():
        expected, logits = reference(mapped), encoder(mapped)
        features = encoder.features(mapped).permute(0, 2, 3, 1).flatten(0, 2)
        ids = argmax_codes(features, encoder.output.weight.flatten(1), encoder.output.bias)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(ids, reference.get_codebook_indices(mapped).flatten())


def test_another_module_is_refused() -> None:
    with pytest.raises(DataError, match=r"blocks\.input"):
        from_flava_codebook(nn.Linear(2, 2))


@pytest.fixture
def dall_e_modules() -> types.SimpleNamespace:
    """Classes named as in openai/DALL-E, written from its published structure, importable only inside the test."""
    names = types.SimpleNamespace()

    class Conv2d(nn.Module):
        def __init__(self, n_in: int, n_out: int, kw: int) -> None:
            super().__init__()
            self.kw, self.use_float16, self.device = kw, True, torch.device("cpu")
            self.w = nn.Parameter(torch.randn(n_out, n_in, kw, kw) / (n_in * kw * kw) ** 0.5)
            self.b = nn.Parameter(torch.randn(n_out) * 0.1)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.w, self.b, padding=(self.kw - 1) // 2)

    class Block(nn.Module):
        kernels: tuple[int, ...] = ()

        def __init__(self, n_in: int, n_out: int, n_layers: int) -> None:
            super().__init__()
            self.post_gain = 1 / n_layers**2
            hid = n_out // 4
            self.id_path = Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
            sizes = [(n_in, hid), (hid, hid), (hid, hid), (hid, n_out)]
            stages: list[tuple[str, nn.Module]] = []
            for i, ((a, b), k) in enumerate(zip(sizes, self.kernels, strict=True), 1):
                stages += [(f"relu_{i}", nn.ReLU()), (f"conv_{i}", Conv2d(a, b, k))]
            self.res_path = nn.Sequential(OrderedDict(stages))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.id_path(x) + self.post_gain * self.res_path(x)
            return out

    class EncoderBlock(Block):
        kernels = (3, 3, 3, 1)

    class DecoderBlock(Block):
        kernels = (1, 3, 3, 3)

    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.blocks(x)
            return out

    def groups(
        block: type[Block], widths: list[int], between: type[nn.Module], first: int
    ) -> list[tuple[str, nn.Module]]:
        out: list[tuple[str, nn.Module]] = []
        last = first
        for g, width in enumerate(widths, 1):
            inner: list[tuple[str, nn.Module]] = [
                ("block_1", block(last, width, 8)),
                ("block_2", block(width, width, 8)),
            ]
            if g < 4:
                inner.append(("between", nn.MaxPool2d(2) if between is nn.MaxPool2d else nn.Upsample(scale_factor=2)))
            out.append((f"group_{g}", nn.Sequential(OrderedDict(inner))))
            last = width
        return out

    class Encoder(Whole):
        def __init__(self, n: int, vocab: int) -> None:
            super().__init__()
            end = nn.Sequential(OrderedDict([("relu", nn.ReLU()), ("conv", Conv2d(8 * n, vocab, 1))]))
            body = groups(EncoderBlock, [n, 2 * n, 4 * n, 8 * n], nn.MaxPool2d, n)
            self.blocks = nn.Sequential(OrderedDict([("input", Conv2d(3, n, 7)), *body, ("output", end)]))

    class Decoder(Whole):
        def __init__(self, n: int, vocab: int) -> None:
            super().__init__()
            end = nn.Sequential(OrderedDict([("relu", nn.ReLU()), ("conv", Conv2d(n, 6, 1))]))
            body = groups(DecoderBlock, [8 * n, 4 * n, 2 * n, n], nn.Upsample, n // 2)
            self.blocks = nn.Sequential(OrderedDict([("input", Conv2d(vocab, n // 2, 1)), *body, ("output", end)]))

    for module, classes in {
        "dall_e.utils": [Conv2d],
        "dall_e.encoder": [Encoder, EncoderBlock],
        "dall_e.decoder": [Decoder, DecoderBlock],
    }.items():
        sys.modules[module] = types.ModuleType(module)
        for c in classes:
            c.__module__, c.__qualname__ = module, c.__name__
            setattr(sys.modules[module], c.__name__, c)
            setattr(names, c.__name__, c)
    sys.modules["dall_e"] = types.ModuleType("dall_e")
    yield names  # type: ignore[misc]
    for module in ("dall_e", "dall_e.utils", "dall_e.encoder", "dall_e.decoder"):
        sys.modules.pop(module, None)


def test_openai_pickles_load_without_their_classes_and_agree(
    tmp_path: Path, dall_e_modules: types.SimpleNamespace
) -> None:
    torch.manual_seed(0)
    encoder, decoder = dall_e_modules.Encoder(16, 512), dall_e_modules.Decoder(16, 512)
    torch.save(encoder, tmp_path / "encoder.pkl")
    torch.save(decoder, tmp_path / "decoder.pkl")
    for name in [n for n in sys.modules if n.split(".")[0] == "dall_e"]:
        del sys.modules[name]  # the classes of the file are not importable any more
    ours = load_openai_dvae(tmp_path / "encoder.pkl", tmp_path / "decoder.pkl", image_px=64)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        logits = encoder(map_pixels(images))
        torch.testing.assert_close(ours.encoder(map_pixels(images)), logits, rtol=1e-5, atol=1e-5)
        ids = logits.argmax(1)
        assert torch.equal(ours.encode(images), ids.flatten(1))
        expected = torch.sigmoid(decoder(F.one_hot(ids, 512).permute(0, 3, 1, 2).float())[:, :3])
        expected = ((expected - 0.1) / 0.8).clamp(0, 1)
        torch.testing.assert_close(ours.decode(ids.flatten(1)), expected, rtol=1e-4, atol=1e-5)


def test_published_dvae_becomes_a_tokenizer_of_the_store(tmp_path: Path, dall_e_modules: types.SimpleNamespace) -> None:
    torch.manual_seed(0)
    torch.save(dall_e_modules.Encoder(8, 64), tmp_path / "encoder.pkl")
    torch.save(dall_e_modules.Decoder(8, 64), tmp_path / "decoder.pkl")
    for name in [n for n in sys.modules if n.split(".")[0] == "dall_e"]:
        del sys.modules[name]
    config = ImportTokenizerConfig(
        encoder=str(tmp_path / "encoder.pkl"), decoder=str(tmp_path / "decoder.pkl"), image_px=32
    )
    data = Data(tmp_path / "here")
    made = data.run(IMPORT_TOKENIZER, config)
    tokenizer = tokenizer_from_bytes(*(data.store.read(made.object_of(role)) for role in ("weights", "config")))
    direct = load_openai_dvae(tmp_path / "encoder.pkl", tmp_path / "decoder.pkl", image_px=32)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(tokenizer.encode(images), direct.encode(images))
    assert made.kind == "tokenizer" and made.stats["vocab_size"] == 64
    moved = config.model_copy(update={"encoder": str((tmp_path / "encoder.pkl").rename(tmp_path / "e.pkl"))})
    assert data.run(IMPORT_TOKENIZER, moved).sha256 == made.sha256  # the place does not count, the content does


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (os.environ["DALLE_TEST_EVIL"],)


def test_pickle_that_wants_to_run_code_is_refused_and_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "made-by-the-pickle"
    monkeypatch.setenv("DALLE_TEST_EVIL", str(target))
    torch.save(_Evil(), tmp_path / "encoder.pkl")
    with pytest.raises(DataError, match="not OpenAI's dVAE"):
        load_openai_dvae(tmp_path / "encoder.pkl", tmp_path / "encoder.pkl")
    assert not target.exists()
