"""Models that score pairs: classifiers of what is not safe for work, and judges of whether caption and picture fit.

Each says by a digest which weights it is; scores are stored under that digest, so another threshold asks no model again.
"""

import hashlib
import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from dalle_model.captions import CaptionTokenizer
from dalle_model.errors import DataError, UsageError
from dalle_model.images import stack_squares
from dalle_model.runtime import Runtime
from dalle_model.text_to_image import TextToImage

Scores = npt.NDArray[np.float64]
NUDENET = "nudenet"
_EXPOSED = (
    "BREAST",
    "GENITALIA",
    "BUTTOCKS",
    "ANUS",
)  # of its labels those that end in EXPOSED; feet and so on are none
_UNSAFE_LABELS = ("nsfw", "unsafe", "porn", "explicit", "sexual")
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Scorer(Protocol):
    """A model that scores pairs."""

    def score(self, images: Sequence[bytes], captions: Sequence[str]) -> Scores:
        """Encoded pictures [B] with their captions -> float64 [B]."""


def nudenet_file() -> Path:
    """The weights inside the nudenet package. UsageError where it is not installed."""
    spec = importlib.util.find_spec(NUDENET)
    if spec is None or spec.origin is None:
        raise UsageError(
            'nsfw_model = nudenet needs that package; run `pip install -c infra/constraints.txt ".[nsfw]"`'
        )
    return Path(spec.origin).parent / "320n.onnx"


def folder_digest(folder: str | Path) -> str:
    """SHA-256 over names and contents of the files of a model folder. UsageError when it holds no model."""
    files = sorted(p for p in Path(folder).iterdir() if p.suffix in (".json", ".safetensors", ".bin", ".txt", ".model"))
    if not (Path(folder) / "config.json").is_file():
        raise UsageError(f"{folder} holds no config.json; give the folder of a Hugging Face model")
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


class NudeNet:
    """nudenet's detector: the highest confidence of an exposed part. It was made for photographs of people."""

    def __init__(self) -> None:
        nudenet_file()
        from nudenet import NudeDetector

        self._detector = NudeDetector()

    def score(self, images: Sequence[bytes], captions: Sequence[str]) -> Scores:
        """0 where nothing is found."""
        return np.array([self._one(image) for image in images], np.float64)

    def _one(self, image: bytes) -> float:
        with Image.open(io.BytesIO(image)) as opened:
            shown = np.asarray(opened.convert("RGB"))[:, :, ::-1]  # it reads BGR, as OpenCV does
        found = self._detector.detect(np.ascontiguousarray(shown))
        exposed = [
            f["score"] for f in found if f["class"].endswith("EXPOSED") and any(p in f["class"] for p in _EXPOSED)
        ]
        return round(float(max(exposed, default=0.0)), 4)


class ImageClassifier:
    """A Hugging Face image-classification folder: the probability of its labels that mean unsafe."""

    def __init__(self, folder: str, runtime: Runtime) -> None:
        from transformers import AutoModelForImageClassification

        self._model = load_model(AutoModelForImageClassification, folder).to(runtime.device).eval()
        self._pixels, self._runtime = Pixels(folder), runtime
        labels = {int(i): str(name).lower() for i, name in self._model.config.id2label.items()}
        self._unsafe = [
            i
            for i, name in labels.items()
            if any(word in name for word in _UNSAFE_LABELS) and not name.startswith(("not", "non"))
        ]
        if not self._unsafe:
            raise DataError(
                f"{folder} has the labels {', '.join(labels.values())}; one must say what is unsafe ({', '.join(_UNSAFE_LABELS)})"
            )

    @torch.inference_mode()
    def score(self, images: Sequence[bytes], captions: Sequence[str]) -> Scores:
        """Probability 0..1."""
        logits = self._model(pixel_values=self._pixels(images).to(self._runtime.device)).logits.float()
        return rounded(logits.softmax(-1)[:, self._unsafe].sum(-1))


class Clip:
    """A Hugging Face CLIP folder: cosine of picture and caption (Radford et al. 2021)."""

    def __init__(self, folder: str, runtime: Runtime) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self._model = load_model(CLIPModel, folder).to(runtime.device).eval()
        self._words: Any = _loaded(AutoTokenizer, folder)
        self._pixels, self._runtime = Pixels(folder), runtime
        self._limit = int(self._model.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def score(self, images: Sequence[bytes], captions: Sequence[str]) -> Scores:
        """-1..1; a caption longer than the model's text is cut."""
        device = self._runtime.device
        text = self._words(
            list(captions), padding=True, truncation=True, max_length=self._limit, return_tensors="pt"
        ).to(device)
        out = self._model(
            input_ids=text["input_ids"],
            attention_mask=text["attention_mask"],
            pixel_values=self._pixels(images).to(device),
        )
        return rounded(torch.nn.functional.cosine_similarity(out.image_embeds.float(), out.text_embeds.float()))


class OwnModel:
    """A model of this package: nats per caption token that the picture brings, (ln p(text|picture) - ln p(text)) / n.

    Pointwise mutual information: what the caption alone makes likely earns nothing. Needs a model that was trained to
    describe pictures (``train.image_first_share`` above 0).
    """

    def __init__(self, model: TextToImage, runtime: Runtime) -> None:
        self._model, self._runtime = model, runtime
        self._words = CaptionTokenizer.from_json(model.bpe)

    def score(self, images: Sequence[bytes], captions: Sequence[str]) -> Scores:
        """Above 0 where the picture makes the caption likelier."""
        shown = stack_squares(images, self._model.tokenizer.config.image_px)
        with_it, alone = (self._model.score_text(given, captions, self._runtime) for given in (shown, None))
        limit = self._model.model.shape.max_text_tokens
        tokens = np.array([max(min(len(self._words.encode(c)), limit), 1) for c in captions], np.float64)
        gained = np.asarray(with_it, np.float64) - np.asarray(alone, np.float64)
        per_token: Scores = np.asarray(np.round(gained / tokens, 4), np.float64)
        return per_token


class Pixels:
    """Encoded pictures as a model of Hugging Face wants them; its own processors need packages that we do not."""

    def __init__(self, folder: str) -> None:
        path = Path(folder) / "preprocessor_config.json"
        told = json.loads(path.read_bytes()) if path.is_file() else {}
        size = told.get("crop_size") or told.get("size") or 224
        if isinstance(size, dict):
            size = size.get("height") or size.get("shortest_edge") or 224
        self._side = int(size)
        self._mean = torch.tensor(told.get("image_mean", _CLIP_MEAN)).view(1, 3, 1, 1)
        self._std = torch.tensor(told.get("image_std", _CLIP_STD)).view(1, 3, 1, 1)

    def __call__(self, images: Sequence[bytes]) -> torch.Tensor:
        """float32 [B, 3, side, side]: shorter side scaled (bicubic), centre cropped, normalised."""
        rows = np.stack([self._square(image) for image in images])
        pixels = torch.from_numpy(rows).permute(0, 3, 1, 2).float() / 255
        return (pixels - self._mean) / self._std

    def _square(self, image: bytes) -> npt.NDArray[np.uint8]:
        with Image.open(io.BytesIO(image)) as opened:
            picture = opened.convert("RGB")
        scale = self._side / min(picture.size)
        width, height = (max(self._side, round(side * scale)) for side in picture.size)
        left, top = (width - self._side) // 2, (height - self._side) // 2
        scaled = picture.resize((width, height), Image.Resampling.BICUBIC)
        return np.array(scaled.crop((left, top, left + self._side, top + self._side)))


def load_model(kind: Any, folder: str) -> Any:
    """DataError for a folder of another model: weights that it lacks would be drawn at random and score all the same."""
    model, info = _loaded(kind, folder, output_loading_info=True)
    if info["missing_keys"]:
        raise DataError(
            f"{folder} does not load as {kind.__name__}: {len(info['missing_keys'])} weights are missing, first {sorted(info['missing_keys'])[0]}; give the folder of such a model"
        )
    return model


def _loaded(kind: Any, folder: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(
            f"{folder} does not load as {kind.__name__} ({str(error)[:160]}); give the folder of such a model"
        ) from error


def rounded(values: torch.Tensor) -> Scores:
    """Four digits: what lies beyond depends on the processor's kernels."""
    scores = np.asarray(values.cpu().double().numpy(), dtype=np.float64)
    return np.asarray(np.round(scores, 4), dtype=np.float64)
