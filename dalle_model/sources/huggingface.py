"""Pairs through the ``datasets`` library: a data set of the Hub (streamed) or a local one that it can read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dalle_model.decoding import Reason, Refused
from dalle_model.errors import SourceError
from dalle_model.sources.base import File, Row, files_below, inside, skip, trace_of
from dalle_model.sources.captions import each_caption, place_of, text_of
from dalle_model.sources.contents import content_digest
from dalle_model.sources.huggingface_arrow import ArrowSplit
from dalle_model.sources.huggingface_parquet import ParquetSplit
from dalle_model.sources.huggingface_tars import split_archives
from dalle_model.sources.metadata import CAPTION_COLUMNS, MAX_LINE_BYTES, extra_in
from dalle_model.sources.parquet import IMAGE_COLUMNS, image_of, pick_column
from dalle_model.sources.parquet_records import limit_for, value_within
from dalle_model.sources.telling import Tell, silent
from dalle_model.sources.webdataset import SUFFIXES, Archives

_SPLITS = ("train", "test", "validation", "valid", "dev")
_ARCHIVES = ("zip://", "tar://", "gzip://", "bz2://", "xz://", "zstd://", "lz4://")


class HuggingFace:
    """``NAME[:config][:split]``; NAME is a Hub name or a folder. Pictures are never decoded by the library.

    A Hub data set is pinned to the commit found when it is opened; that commit is its identity.
    """

    vector = False

    def __init__(
        self, words: str, caption_column: str = "", image_column: str = "", max_image_bytes: int = 20_000_000
    ) -> None:
        try:
            import datasets
        except ImportError as error:
            raise SourceError("source hf: needs the package datasets; run `pip install datasets`") from error
        datasets.disable_progress_bars()
        self._datasets = datasets
        self._path, self._config, wanted = split_words(words)
        self._local = Path(self._path).expanduser().resolve() if Path(self._path).expanduser().exists() else None
        self.name = "hf" if self._local else f"hf:{self._path}"
        self._revision = None if self._local else self._commit()
        self._kind = ""
        self._plain: dict[str, list[str]] = {}  # files by split, where they are of a kind that is read here
        self._max_bytes = max_image_bytes
        found = self._load()
        self._split = self._pick_split(list(found), wanted)
        self._archives: Archives | None = None
        if found[self._split] is None:
            files = self._plain[self._split]
            self._archives = split_archives(files, self._local, caption_column, image_column, max_image_bytes)
            return
        data = found[self._split]
        names = list(data.column_names or next(iter(data), {}))
        source = f"hf:{self._path}"
        self._caption = pick_column(names, caption_column, CAPTION_COLUMNS, source, "caption_column")
        self._image = pick_column(names, image_column, IMAGE_COLUMNS, source, "image_column")
        features = data.features or {}
        self._classes = getattr(features.get(self._caption), "names", None)
        if features:
            # The library decodes each picture and sound of a record, in this process and without a limit: one that is
            # broken, a mask say, would end the run.
            data = data.select_columns([name for name in names if self._is_used(name, features[name])])
        if isinstance(features.get(self._image), datasets.Image):
            data = data.cast_column(self._image, datasets.Image(decode=False))
        self._data = data
        self._limit_of = limit_for(self._image, max_image_bytes, MAX_LINE_BYTES)
        self._files = self._split_files()
        kind = features.get(self._caption)
        first: dict[str, Any] = next(iter(data), {}) if kind is None else {}
        self._many_captions = isinstance(first.get(self._caption), list) or _is_list(datasets, kind)

    def _split_files(self) -> ParquetSplit | ArrowSplit | None:
        """What reads the files of the split with bounds, where they are Parquet, or Arrow and here."""
        files = self._plain.get(self._split)
        if files and self._kind == "Parquet":
            return ParquetSplit(files, self._caption, self._image, self._max_bytes)
        if files and not any("://" in file for file in files):
            return ArrowSplit([Path(file) for file in files], self._caption, self._image, self._max_bytes)
        return None

    def _is_used(self, name: str, kind: Any) -> bool:
        return name in (self._caption, self._image) or isinstance(
            kind, (self._datasets.Value, self._datasets.ClassLabel)
        )

    def identity(self, tell: Tell = silent) -> dict[str, str]:
        content = (
            content_digest(self._local, files_below(self._local, hidden=True), tell)
            if self._local
            else f"{self._path}@{self._revision}"
        )
        return {"hf": content, "hf.config": self._config, "hf.split": self._split}

    def trace(self) -> str:
        return trace_of(files_below(self._local, hidden=True)) if self._local else ""

    def count(self) -> int:
        if self._archives:
            return 0
        if isinstance(self._files, ParquetSplit) and self._local:
            return self._files.count()
        if hasattr(self._data, "__len__"):
            return len(self._data)
        splits = self._data.info.splits or {}
        return splits[self._split].num_examples if self._split in splits else 0

    def bytes_read(self) -> tuple[int, int]:
        """(bytes read so far, bytes there are) of archives that lie here, (0, 0) of all else."""
        return self._archives.bytes_read() if self._archives else (0, 0)

    def rows(self, start: int) -> Iterator[Row]:
        if self._archives:
            return self._archives.rows(start)
        if not self._many_captions:
            return self._rows_from(start)
        # Rows are more than records: the captions alone tell how many, no picture is read for that.
        captions = (text_of(record.get(self._caption)) for record in self._records_from(0, [self._caption]))
        record, left = place_of(start, captions) if start else (0, 0)
        return skip((each for row in self._rows_from(record) for each in each_caption(row)), left)

    def _rows_from(self, start: int) -> Iterator[Row]:
        """Records from a number on, as rows."""
        for number, record in enumerate(self._records_from(start), start):
            yield self._row(record, number)

    def _records_from(self, start: int, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """Records from a number on, with some columns alone."""
        data = self._data if columns is None else self._data.select_columns(columns)
        records: Any
        if self._files:
            records = self._files.records(start, columns)
        elif hasattr(data, "__len__"):
            tables = data.with_format("arrow")  # of one row: its size is known before it is read
            records = (self._within(tables[n]) for n in range(start, len(data)))
        else:
            records = iter(data.skip(start))
        number = start
        while True:
            try:
                record = next(records, None)
            except SourceError:  # names the file
                raise
            except Exception as error:  # the library raises many types, for the network as for bad files
                raise SourceError(
                    f"hf:{self._path} stops at row {number} ({_words(error)}); run again to go on from there"
                ) from error
            if record is None:
                return
            yield record
            number += 1

    def _within(self, row: Any) -> dict[str, Any]:
        """The values of a table of one row; a Refused for one that is too large."""
        return {name: value_within(row.column(name)[0], self._limit_of(name)) for name in row.column_names}

    def _row(self, record: dict[str, Any], number: int) -> Row:
        caption = text_of(record.get(self._caption))
        if self._classes and isinstance(caption, int) and 0 <= caption < len(self._classes):
            caption = self._classes[caption]
        picture = self._picture(record.get(self._image))
        licence, author = record.get("licence", record.get("license")), record.get("author")
        return Row(
            f"{self._split}#{number}",
            caption,
            Refused(Reason.CAPTION_TOO_LONG, caption.detail) if isinstance(caption, Refused) else picture,
            licence if isinstance(licence, str) else "",
            author if isinstance(author, str) else "",
            extra_in(record, {self._caption, self._image, "licence", "license", "author"}),
        )

    def _picture(self, value: Any) -> bytes | File | Refused:
        path = value.get("path") if isinstance(value, dict) and not value.get("bytes") else value
        if not (isinstance(path, str) and "://" in path):
            return image_of(value, self._local, self._local)
        address = self._ours(path)
        if address is None:
            return Refused(Reason.OUTSIDE_SOURCE, f"{path[:200]} leads out of the data set")
        from datasets.utils.file_utils import xopen

        try:
            with xopen(address, "rb") as stream:
                data = bytes(stream.read(self._max_bytes + 1))
            if len(data) > self._max_bytes:
                return Refused(Reason.TOO_MANY_BYTES, f"more than {self._max_bytes} bytes")
            return data
        except Exception as error:  # network, missing file, permission: one row's trouble
            return Refused(Reason.UNREADABLE_FILE, _words(error))

    def _ours(self, path: str) -> str | None:
        """The address that a row gives, perhaps of a member of an archive; None unless it lies in the data set, or on the Hub as it does: rows are written by strangers."""
        *within, place = path.split("::")
        if any(not part.startswith(_ARCHIVES) for part in within):
            return None
        if self._local is None:
            return path if place.startswith("hf://datasets/") else None
        found = place if "://" in place else inside(self._local, self._local, place)
        # Opened as what was looked at: the library takes a relative path for one below the working folder.
        return "::".join([*within, found]) if isinstance(found, str) and "://" not in found else None

    def _commit(self) -> str:
        from huggingface_hub import HfApi

        try:
            commit = HfApi().dataset_info(self._path, timeout=20).sha
        except Exception as error:  # offline, no such name, private: the library has a type for each
            raise SourceError(
                f"source hf:{self._path} is no local folder and the Hub does not answer for it ({_words(error)}); "
                "check the name and the network, or give a folder"
            ) from error
        return str(commit)

    def _load(self) -> dict[str, Any]:
        """Splits by name."""
        try:
            if self._local and (self._local / "dataset_dict.json").is_file():
                return dict(self._datasets.load_from_disk(str(self._local)))
            if self._local and (self._local / "state.json").is_file():
                found = self._datasets.load_from_disk(str(self._local))
                return {str(found.split or "train"): found}
            path = str(self._local or self._path)
            builder = self._datasets.load_dataset_builder(path, self._config or None, revision=self._revision)
            self._kind, self._plain = _plain_files(builder)
            if self._kind == "WebDataset":  # the library would read some of it to see what it is
                return dict.fromkeys(self._plain)
            return dict(builder.as_streaming_dataset())
        except Exception as error:  # the library raises many types; all mean that it cannot read this
            raise SourceError(
                f"source hf:{self._path} cannot be read ({_words(error)}); check the path, the config and the split"
            ) from error

    def _pick_split(self, names: list[str], wanted: str) -> str:
        usual = [wanted] if wanted else ["train", *(names if len(names) == 1 else [])]
        for name in usual:
            if name in names:
                return name
        raise SourceError(
            f"source hf:{self._path} has the splits {', '.join(names)}, not {wanted or 'train'}; name one: hf:{self._path}::{names[0]}"
        )


def split_words(words: str) -> tuple[str, str, str]:
    """(name, config, split) of "NAME[:config][:split]"; a lone word that is the usual name of a split is one."""
    name, _, rest = words.partition(":")
    config, colon, split = rest.partition(":")
    if not colon and config in _SPLITS:
        config, split = "", config
    return name, config, split


def _plain_files(builder: Any) -> tuple[str, dict[str, list[str]]]:
    """(kind, files by split) of a data set that is Parquet, Arrow or WebDataset and nothing else; ("", {}) of any other, and where not all of its rows are wanted."""
    from datasets.packaged_modules.arrow.arrow import Arrow
    from datasets.packaged_modules.parquet.parquet import Parquet
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    if not isinstance(builder, (Arrow, Parquet, WebDataset)) or getattr(builder.config, "filters", None) is not None:
        return "", {}
    found = {str(split): [str(file) for file in files] for split, files in (builder.config.data_files or {}).items()}
    endings = (".parquet",) if isinstance(builder, Parquet) else (".arrow",) if isinstance(builder, Arrow) else SUFFIXES
    plain = all(file.endswith(endings) and "::" not in file for files in found.values() for file in files)
    kind = next(kind.__name__ for kind in (Arrow, Parquet, WebDataset) if isinstance(builder, kind))
    return (kind, found) if plain else ("", {})


def _is_list(datasets: Any, kind: Any) -> bool:
    """Whether a feature is a list: the library has had several types for that."""
    kinds = [getattr(datasets, name) for name in ("List", "LargeList", "Sequence") if hasattr(datasets, name)]
    return isinstance(kind, (list, *(k for k in kinds if isinstance(k, type))))


def _words(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
