"""Given models of pictures: an embedding of your own for kinship, and judges of what looks good.

Nothing here knows a model by name: a folder of transformers says itself what it is, and a hash says that it is the one
that was meant. Without a hash a model behind the same name could change under a curation.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dalle_model.curation.embeddings import MODEL_UNIT
from dalle_model.curation.scorers import Pixels, Scores, folder_digest, load_model, rounded
from dalle_model.errors import DataError, UsageError
from dalle_model.published import checked
from dalle_model.runtime import Runtime

_LIKED_LABELS = ("aesthetic", "beautiful", "good", "high")
_FILES = ("*.json", "*.safetensors", "*.txt")


def model_folder(name: str, sha256: str) -> Path:
    """The folder of a model: ``name`` itself, or a snapshot of that repository of the Hugging Face hub.

    A snapshot that this machine holds is used, else it is downloaded. ``sha256``: of its ``model.safetensors``.
    Raises UsageError when there is no such folder or repository, DataError when the weights are other ones.
    """
    folder = Path(name) if Path(name).is_dir() else _snapshot(name)
    checked(folder / "model.safetensors", sha256)
    return folder


def _snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{name!r} is neither a folder nor a repository of the Hugging Face hub that can be reached ({str(error)[:120]}); give the path of a model's folder"
        ) from error


class VisionModel:
    """An ``embeddings.Embedding`` by a vision model of transformers, e.g. CLIP: unit vectors in steps of 1/16384.

    CLIP gives its projected image embedding (Radford et al. 2021); other models their pooled output, or the mean of
    their last layer where they have none. Weights are loaded at the first picture.
    """

    name = "model"
    dtype: type[np.generic] = np.int16
    unit = MODEL_UNIT

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        """DataError when the folder's config names no width."""
        from transformers import AutoConfig

        self._folder, self._runtime = folder, runtime
        self.digest = hashlib.sha256(f"{folder_digest(folder)} unit vectors, steps of 1/16384".encode()).hexdigest()
        try:
            self._config: Any = AutoConfig.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{folder} is no model of transformers ({str(error)[:120]})") from error
        clip = self._config.model_type in ("clip", "clip_vision_model")
        width = getattr(self._config, "projection_dim" if clip else "hidden_size", None)
        if not isinstance(width, int):
            raise DataError(f"{folder} ({self._config.model_type}) names no width; give a vision model such as CLIP")
        self.width = width

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModel, CLIPModel, CLIPVisionModelWithProjection

        kinds = {"clip": CLIPModel, "clip_vision_model": CLIPVisionModelWithProjection}
        model = load_model(kinds.get(self._config.model_type, AutoModel), str(self._folder))
        return model.to(self._runtime.device).eval()

    @cached_property
    def _pixels(self) -> Pixels:
        return Pixels(str(self._folder))

    @torch.inference_mode()
    def of(self, pictures: Sequence[bytes]) -> npt.NDArray[Any]:
        """int16 [n, width]."""
        if not pictures:
            return np.zeros((0, self.width), np.int16)
        pixels = self._pixels(pictures).to(self._runtime.device)
        rows = torch.nn.functional.normalize(self._embedded(pixels).float(), dim=1)
        # Rounded, so that the last digits, which depend on the machine, hardly ever decide who is kin.
        return (rows.cpu().double().numpy() / self.unit).round().astype(np.int16)

    def _embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        if self._config.model_type == "clip":
            pooled = self._model.vision_model(pixel_values=pixels).pooler_output
            projected: torch.Tensor = self._model.visual_projection(pooled)
            return projected
        out = self._model(pixel_values=pixels)
        pooled = getattr(out, "image_embeds", None)
        if pooled is None:
            pooled = getattr(out, "pooler_output", None)
        found: torch.Tensor = out.last_hidden_state.mean(1) if pooled is None else pooled
        return found


class AestheticHead:
    """LAION's judge of beauty: linear layers on CLIP's unit embedding, one number out (Schuhmann et al. 2022, 2210.08402).

    The published files are one ``Linear`` (keys ``weight``, ``bias``) or several in a row without activations between
    them (keys ``layers.0.weight``, ``layers.0.bias``, ``layers.2.weight`` ...); as ``.pth`` or ``.safetensors``.
    """

    def __init__(self, path: Path, width: int) -> None:
        """``width``: of the embedding. DataError when the file holds no such layers or wants another width."""
        self._layers = _linear_layers(path)
        wanted = self._layers[0][0].shape[1]
        if wanted != width:
            raise DataError(
                f"{path} judges embeddings of width {wanted}, the model of curate.embedding_model gives {width}"
            )

    def of(self, vectors: npt.NDArray[Any]) -> Scores:
        """[n, width], of any length -> float64 [n]."""
        rows = vectors.astype(np.float64)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        for weight, bias in self._layers:
            rows = rows @ weight.T + bias
        return np.round(rows[:, 0], 4)


def _linear_layers(path: Path) -> list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    state = _state(path)
    names = sorted(
        (name for name in state if name.endswith("weight")), key=lambda n: [int(p) for p in n.split(".") if p.isdigit()]
    )
    layers = []
    for name in names:
        weight, bias = state[name], state.get(name.removesuffix("weight") + "bias")
        if weight.ndim != 2 or bias is None or bias.shape != weight.shape[:1]:
            raise DataError(f"{path} holds {name} of shape {tuple(weight.shape)}, which is no linear layer with a bias")
        layers.append((weight.double().numpy(), bias.double().numpy()))
    fits = all(a[0].shape[0] == b[0].shape[1] for a, b in pairwise(layers))
    if not layers or not fits or layers[-1][0].shape[0] != 1:
        raise DataError(
            f"{path} is no row of linear layers that ends in one number; give an aesthetic head of LAION's form"
        )
    return layers


def _state(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(state, dict) and all(isinstance(value, torch.Tensor) for value in state.values()):
            return state
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise DataError(f"{path} does not load as weights ({str(error).splitlines()[0][:120]})") from error
    raise DataError(f"{path} holds no weights by name; save the head's state_dict")


class AestheticClassifier:
    """A Hugging Face image-classification folder as a judge: its one output, the mean of its numbers, or a probability.

    One output is the score. Labels that are numbers (1, 2, ... 10) give their expected value. Of other labels one must say
    what is liked (aesthetic, beautiful, good, high); its probability is the score.
    """

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        """DataError for labels that say nothing of beauty."""
        from transformers import AutoModelForImageClassification

        self._model = load_model(AutoModelForImageClassification, str(folder)).to(runtime.device).eval()
        self._pixels, self._runtime = Pixels(str(folder)), runtime
        labels = [str(self._model.config.id2label[i]).lower() for i in range(self._model.config.num_labels)]
        self._values = None if len(labels) == 1 else _values(labels, folder)

    @torch.inference_mode()
    def score(self, images: Sequence[bytes], captions: Sequence[str]) -> Scores:
        """As the model gives it."""
        logits = self._model(pixel_values=self._pixels(images).to(self._runtime.device)).logits.float().cpu()
        if self._values is None:
            return rounded(logits[:, 0])
        return rounded(logits.softmax(-1) @ torch.tensor(self._values))


def _values(labels: list[str], folder: Path) -> list[float]:
    """What each label is worth."""
    try:
        return [float(label) for label in labels]
    except ValueError:
        liked = [float(label.startswith(_LIKED_LABELS)) for label in labels]
    if not any(liked) or all(liked):
        raise DataError(
            f"{folder} has the labels {', '.join(labels)}; they must be numbers, or one must begin with {', '.join(_LIKED_LABELS)}"
        )
    return liked
