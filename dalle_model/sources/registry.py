"""Source words ("openmoji", "imagefolder:PATH", ...) -> sources."""

from dalle_model.config import IngestConfig
from dalle_model.errors import UsageError
from dalle_model.sources.base import Source

KINDS = ("openmoji", "scenes", "imagefolder", "hf", "parquet", "jsonl", "csv", "webdataset")


def split_source(source: str) -> tuple[str, str]:
    """("imagefolder", "PATH") of "imagefolder:PATH". UsageError names the kinds."""
    kind, _, rest = source.partition(":")
    if kind not in KINDS or (kind != "scenes" and (kind == "openmoji") == bool(rest)):
        raise UsageError(
            f"unknown source {source!r}; give openmoji, scenes[:COUNT], imagefolder:PATH, hf:NAME[:config][:split], "
            "parquet:PATH, jsonl:PATH, csv:PATH or webdataset:PATH"
        )
    return kind, rest


def open_source(config: IngestConfig) -> Source:
    """The source that ``config`` names. Raises UsageError for unknown words, SourceError when it is not there."""
    kind, rest = split_source(config.source)
    # Imported at use: a source's packages are optional, and datasets takes seconds to load.
    if kind == "openmoji":
        from dalle_model.sources.openmoji import OpenMoji

        return OpenMoji()
    if kind == "scenes":
        from dalle_model.sources.scenes import Scenes

        return Scenes(rest, config.image_px)
    if kind == "imagefolder":
        from dalle_model.sources.imagefolder import ImageFolder

        return ImageFolder(rest, config.caption_column)
    if kind in ("jsonl", "csv"):
        from dalle_model.sources.imagefolder import MetadataFile

        return MetadataFile(kind, rest, config.caption_column)
    if kind == "webdataset":
        from dalle_model.sources.webdataset import WebDataset

        return WebDataset(rest, config.caption_column, config.max_image_bytes)
    if kind == "parquet":
        from dalle_model.sources.parquet import ParquetFiles

        return ParquetFiles(rest, config.caption_column, config.image_column)
    from dalle_model.sources.huggingface import HuggingFace

    return HuggingFace(rest, config.caption_column, config.image_column)
