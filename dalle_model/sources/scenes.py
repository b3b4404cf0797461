"""Scenes of flat shapes with exact captions, drawn here: data without a download, whose truth can be checked."""

from collections.abc import Iterator

from dalle_model.errors import UsageError
from dalle_model.images import encode_png
from dalle_model.scenes import SCENES_VERSION, render, scene_at
from dalle_model.sources.base import Row
from dalle_model.sources.telling import Tell, silent

DEFAULT_COUNT = 10_000
_MAX_COUNT = 10_000_000
_SEED = 0


class Scenes:
    """The first ``count`` scenes of a fixed seed, drawn at ``px``. ``words``: what stands after "scenes:", or nothing."""

    name = "scenes"
    vector = False

    def __init__(self, words: str, px: int) -> None:
        count = int(words) if words.isascii() and words.isdigit() and len(words) < 9 else 0
        if words and not 1 <= count <= _MAX_COUNT:
            raise UsageError(
                f"source scenes:{words}: {words!r} is no number from 1 to {_MAX_COUNT:,}; give e.g. scenes:10000"
            )
        self._count = count or DEFAULT_COUNT
        self._px = px

    def identity(self, tell: Tell = silent) -> dict[str, str]:
        return {"scenes": str(self._count), "scenes.version": str(SCENES_VERSION), "scenes.seed": str(_SEED)}

    def trace(self) -> str:
        return ""

    def count(self) -> int:
        return self._count

    def rows(self, start: int) -> Iterator[Row]:
        for index in range(start, self._count):
            scene = scene_at(_SEED, index)
            image = encode_png(render(scene.things, self._px))
            yield Row(f"{index:08d}", scene.caption, image, "CC0-1.0", "dalle-prefect", scene.record())
