"""WebDataset archives of a Hugging Face data set, without the library that would hold each member as a whole.

``datasets`` says which files a split has; they are read like those of ``webdataset:``, with its bounds.
"""

import io
from pathlib import Path
from typing import Any, BinaryIO, cast

from dalle_model.errors import SourceError
from dalle_model.sources.huggingface_parquet import Addressed
from dalle_model.sources.parquet_large import Opens
from dalle_model.sources.webdataset import IMAGE_SUFFIXES, Archives

_PIECE = 1 << 20


class _Archive(Addressed):
    """An archive elsewhere, whose network troubles are told from damage."""

    def open(self, mode: str) -> BinaryIO:
        """As of a path; tried again as the library does."""
        return cast(BinaryIO, io.BufferedReader(_Telling(self.address), _PIECE))


class _Telling(io.RawIOBase):
    """A file behind an address. SourceError for whatever the network does: its trouble would pass, and is no damage of the archive."""

    def __init__(self, address: str) -> None:
        from datasets.utils.file_utils import xopen

        self._address = address
        self._stream: Any = self._told(xopen, address, "rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._told(self._stream.seek, offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())

    def readinto(self, buffer: Any) -> int:
        data = self._told(self._stream.read, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed and hasattr(self, "_stream"):
            self._stream.close()
        super().close()

    def _told(self, do: Any, *words: Any) -> Any:
        try:
            return do(*words)
        except Exception as error:  # the library and fsspec raise many types
            cause = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
            raise SourceError(f"{self._address} cannot be read ({cause}); run again to go on from there") from error


def split_archives(
    addresses: list[str], folder: Path | None, caption_column: str, image_column: str, max_image_bytes: int
) -> Archives:
    """The archives of one split, in order. ``folder``: that of a local data set; keys begin below it.

    The columns are the library's: "txt", "jpg"; else that of the ``.json``. SourceError for a picture of another suffix.
    """
    if image_column not in ("", *IMAGE_SUFFIXES):
        raise SourceError(
            f"ingest.image_column={image_column}: the pictures of WebDataset archives are .{', .'.join(IMAGE_SUFFIXES)}; name one"
        )
    files: list[tuple[str, Opens]] = [
        (place.rpartition("@")[2].partition("/")[2] or place, _Archive(place))
        if "://" in place
        else (Path(place).relative_to(folder).as_posix() if folder else place, Path(place))
        for place in addresses
    ]
    return Archives(files, "" if caption_column == "txt" else caption_column, max_image_bytes, image_column)
