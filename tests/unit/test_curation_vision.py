"""Models that somebody gives to curation: an own embedding for kinship, and a judge of beauty as a weight."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from support.bad_images import encoded, photo
from support.data_steps import Data, write_folder

from dalle_model.config import CurateConfig, IngestConfig
from dalle_model.curation.vision import AestheticClassifier, AestheticHead, VisionModel, model_folder
from dalle_model.errors import DataError, UsageError
from dalle_model.runtime import Runtime
from tasks.artifacts import Manifest
from tasks.contamination import refuse_contaminated
from tasks.stages import CURATE

pytestmark = pytest.mark.xdist_group("transformers")  # the first use of a model imports for seconds

TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**TINY, "image_size": 32, "patch_size": 16}
WIDTH = 8


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights(folder: Path) -> str:
    return sha256(folder / "model.safetensors")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained CLIP."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    text = {**TINY, "vocab_size": 10, "max_position_embeddings": 8}
    transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=WIDTH)
    ).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"crop_size": 32}')
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge of beauty of LAION's form: two linear layers with a gap where dropout was."""
    path = tmp_path_factory.mktemp("head") / "head.pth"
    g = torch.Generator().manual_seed(0)
    shapes = {"layers.0": (4, WIDTH), "layers.2": (1, 4)}
    state = {f"{name}.weight": torch.randn(shape, generator=g) for name, shape in shapes.items()}
    torch.save(state | {"layers.0.bias": torch.ones(4), "layers.2.bias": torch.full((1,), 5.0)}, path)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Data, Manifest]:
    folder = tmp_path_factory.mktemp("data")
    pictures = {f"{n}.png": encoded(photo(40, 40, seed=n), "PNG") for n in range(5)}
    pictures["copy.jpg"] = encoded(photo(40, 40, seed=0), "JPEG", quality=70)
    lines = [{"file_name": name, "text": f"the picture {name}"} for name in pictures]
    data = Data(folder, workers=1)
    source = write_folder(folder / "set", pictures, lines)
    return data, data.ingest(IngestConfig(source=f"imagefolder:{source}", image_px=40, rows_per_shard=4))


def test_kin_is_found_by_an_own_clip(dataset: tuple[Data, Manifest], clip: Path) -> None:
    data, pairs = dataset
    images = [row["image"] for row in data.rows(pairs, "pairs")]
    keys = [row["key"] for row in data.rows(pairs, "pairs")]
    vectors = VisionModel(clip, Runtime()).of(images) * VisionModel.unit
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(6), abs=1e-3)
    apart = float(np.linalg.norm(vectors[keys.index("0.png")] - vectors[keys.index("copy.jpg")]))
    config = CurateConfig(
        valid_share=0, embedding_model=str(clip), embedding_model_sha256=weights(clip), embedding_distance=apart * 1.05
    )
    manifest = data.curate(config, pairs)
    rows = {row["id"]: row for row in data.rows(manifest, "clusters")}
    ids = {row["key"]: row["id"] for row in data.rows(pairs, "pairs")}
    copy, whole = rows[ids["copy.jpg"]], rows[ids["0.png"]]
    assert copy["cluster"] == whole["cluster"]
    assert {copy["tier"], whole["tier"]} == {"", "embedding"}
    (distance,) = (row["distance"] for row in (copy, whole) if row["tier"])
    assert distance == pytest.approx(apart, abs=1e-6)
    strict = data.curate(config.model_copy(update={"embedding_distance": apart * 0.5}), pairs)
    assert len({row["cluster"] for row in data.rows(strict, "clusters")}) > manifest.stats["clusters"]


def test_beauty_weighs_and_drops_nothing(
    dataset: tuple[Data, Manifest], clip: Path, head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, pairs = dataset
    vectors = VisionModel(clip, Runtime()).of([row["image"] for row in data.rows(pairs, "pairs")])
    state = torch.load(head, weights_only=True)
    unit = torch.nn.functional.normalize(torch.from_numpy(vectors.astype(np.float64)))
    hidden = unit @ state["layers.0.weight"].double().T + 1
    expected = (hidden @ state["layers.2.weight"].double().T + 5)[:, 0].numpy()
    low, high = np.quantile(expected, [0.2, 0.8])
    given: dict[str, Any] = {"embedding_model": str(clip), "embedding_model_sha256": weights(clip)}
    given |= {"aesthetic_model": str(head), "aesthetic_model_sha256": sha256(head)}
    config = CurateConfig(
        valid_share=0, embedding_distance=0, aesthetic_weight=0.5, aesthetic_range=(float(low), float(high)), **given
    )
    manifest = data.curate(config, pairs)
    scores = {row["id"]: row for row in data.rows(manifest, "scores") if row["rule"] == "aesthetic_model"}
    ids = [row["id"] for row in data.rows(pairs, "pairs")]
    assert [scores[i]["score"] for i in ids] == pytest.approx(expected.tolist(), abs=1e-3)
    assert {row["rule_version"] for row in scores.values()} == {1}
    assert all(row["model"].startswith(f"head {sha256(head)}") for row in scores.values())
    curated = {row["id"]: row["weight"] for row in data.rows(manifest, "curated")}
    wanted = 1 + 0.5 * (2 * np.clip((expected - low) / (high - low), 0, 1) - 1)
    assert [curated[i] for i in ids] == pytest.approx(wanted.tolist(), abs=1e-2), "all are kept, and weighed"
    assert min(curated.values()) == 0.5 and max(curated.values()) == 1.5, "what lies beyond the range is cut off"

    def refuse(*_: object) -> None:
        raise AssertionError("the model was asked again")

    monkeypatch.setattr(VisionModel, "of", refuse)
    monkeypatch.setattr(AestheticHead, "of", refuse)
    again = data.curate(config.model_copy(update={"aesthetic_weight": 0.0}), pairs)
    assert {row["weight"] for row in data.rows(again, "curated")} == {1.0}


def test_a_set_near_training_by_the_own_model_is_refused_without_the_model(
    dataset: tuple[Data, Manifest], clip: Path, tmp_path: Path
) -> None:
    data, pairs = dataset
    turned = photo(40, 40, seed=0).transpose(Image.Transpose.FLIP_LEFT_RIGHT)  # another hash, another picture
    source = write_folder(
        tmp_path / "set", {"x.png": encoded(turned, "PNG")}, [{"file_name": "x.png", "text": "turned"}]
    )
    foreign = data.ingest(IngestConfig(source=f"imagefolder:{source}", image_px=40))
    images = [row["image"] for artifact in (foreign, pairs) for row in data.rows(artifact, "pairs")]
    vectors = VisionModel(clip, Runtime()).of(images).astype(float)
    apart = np.sort(np.linalg.norm(vectors[1:] - vectors[0], axis=1)) * VisionModel.unit
    copied = tmp_path / "clip"
    shutil.copytree(clip, copied)
    config = CurateConfig(
        valid_share=0,
        holdout_every=10**6,
        exclude_bits=0,
        embedding_model=str(copied),
        embedding_model_sha256=weights(clip),
    )
    job = data.job(CURATE, CurateConfig(), {"pairs": pairs})
    near = data.curate(config.model_copy(update={"embedding_distance": float(apart[2]) * 1.001}), pairs)
    far = data.curate(config.model_copy(update={"embedding_distance": float(apart[0]) * 0.999}), pairs)
    unseen = data.curate(CurateConfig(valid_share=0), foreign)
    with pytest.raises(UsageError, match=r"never measured by the model .* curate the set once with the same"):
        refuse_contaminated(job, near, unseen)
    measured = data.curate(config, foreign)
    shutil.rmtree(copied)  # what is stored is enough
    for evaluation in (measured, unseen):  # the embeddings belong to the pairs of both
        with pytest.raises(DataError, match=r"3 of 6 training pictures touch .* or within 0\.\d+ of the embedding"):
            refuse_contaminated(job, near, evaluation)
        record = refuse_contaminated(job, far, evaluation)
        assert (record["touching"], record["embedding"]) == (0, "model")
        assert record["embedding_model_sha256"] == weights(clip)
        assert (
            record["embedding_digest"]
            == VisionModel(clip, Runtime()).digest
            == far.config["outside"]["embedding_model"]
        )
    by_hash = data.curate(CurateConfig(valid_share=0, exclude_bits=0), pairs)
    assert refuse_contaminated(job, by_hash, measured)["embedding_digest"] is None


@pytest.mark.parametrize(
    ("labels", "values"),
    [(["LABEL_0"], None), (["1", "2", "10"], [1, 2, 10]), (["aesthetic", "not_aesthetic"], [1, 0])],
)
def test_a_classifier_judges_by_what_its_labels_say(
    labels: list[str], values: list[float] | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**VISION, id2label=dict(enumerate(labels)), num_labels=len(labels))
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 32}}')
    judge = AestheticClassifier(tmp_path, Runtime())
    images = [encoded(photo(40, 30, seed=n), "PNG") for n in range(2)]
    with torch.no_grad():
        logits = model(pixel_values=judge._pixels(images)).logits
    wanted = logits[:, 0] if values is None else logits.softmax(-1) @ torch.tensor(values, dtype=torch.float32)
    assert judge.score(images, ["", ""]) == pytest.approx(wanted.numpy(), abs=1e-3)


@pytest.mark.parametrize("kind", ["tower", "vit"])
def test_other_models_of_pictures_embed_too(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = transformers.ViTModel(transformers.ViTConfig(**VISION))
    if kind == "tower":
        model = transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(**VISION, projection_dim=WIDTH)
        )
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"crop_size": 32}')
    embedding = VisionModel(tmp_path, Runtime())
    rows = embedding.of([encoded(photo(40, 30, seed=n), "PNG") for n in range(3)])
    assert rows.shape == (3, WIDTH if kind == "tower" else 16) == (3, embedding.width)
    assert rows.dtype == np.int16 and len(np.unique(rows, axis=0)) == 3
    assert embedding.of([]).shape == (0, embedding.width)


def test_what_is_not_what_was_declared_is_refused_in_words(
    dataset: tuple[Data, Manifest], clip: Path, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, pairs = dataset
    with pytest.raises(ValidationError, match="embedding_model needs embedding_model_sha256"):
        CurateConfig(embedding_model=str(clip))
    with pytest.raises(ValidationError, match="set one of them"):
        CurateConfig(embedding_model=str(clip), embedding_model_sha256="0" * 64, embedding="thumbnail")
    with pytest.raises(ValidationError, match="must rise"):
        CurateConfig(aesthetic_range=(7, 4))
    with pytest.raises(DataError, match=rf"has sha256 {weights(clip)}, the config declares 0000"):
        data.curate(CurateConfig(embedding_model=str(clip), embedding_model_sha256="0" * 64), pairs)
    with pytest.raises(UsageError, match=r"set curate\.embedding_model"):
        data.curate(CurateConfig(aesthetic_model=str(head), aesthetic_model_sha256=sha256(head)), pairs)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="neither a folder nor a repository"):
        model_folder("nobody/no-such-model", "0" * 64)
    with pytest.raises(DataError, match=r"of width 8, .* gives 16"):
        AestheticHead(head, 16)
    wrong = tmp_path / "wrong.safetensors"
    save_file({"a.weight": torch.zeros(3, WIDTH), "a.bias": torch.zeros(3)}, wrong)
    with pytest.raises(DataError, match="ends in one number"):
        AestheticHead(wrong, WIDTH)
    wrong.write_bytes(b"no weights")
    with pytest.raises(DataError, match="does not load as weights"):
        AestheticHead(wrong, WIDTH)
