"""Run the work of a data stage in this process on a folder store: no child of its own, so a test takes milliseconds."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dalle_model.config import Section
from tasks.artifacts import ArtifactRef, Manifest
from tasks.job import Events, Job
from tasks.settings import Settings
from tasks.stages import CURATE, INGEST
from tasks.step import Stage, job_spec, load_dotted, open_store, plan
from tasks.store import Store


class Data:
    """A store in a folder, and the stages that fill it."""

    def __init__(self, folder: Path, workers: int = 2) -> None:
        self.settings = Settings(store=str(folder / "artifacts"), spool=folder / "spool", workers=workers)
        self._spools = 0

    @property
    def store(self) -> Store:
        return open_store(self.settings)

    def run(self, stage: Stage, config: Section, inputs: Mapping[str, Manifest] | None = None) -> Manifest:
        """Run ``stage`` whether or not its artifact exists, and commit."""
        job = self.job(stage, config, inputs)
        manifest = job.manifest(load_dotted(stage.work)(job), {})
        job.store.commit(manifest)
        fetched = "://" in self.settings.store  # a bucket's objects are read as copies there
        assert fetched or not list(job.spool.iterdir()), "a step leaves nothing in its spool"
        return manifest

    def job(self, stage: Stage, config: Section, inputs: Mapping[str, Manifest] | None = None) -> Job:
        """What the work function of ``stage`` is given."""
        store = self.store
        refs = {name: self.ref(m) for name, m in (inputs or {}).items()}
        spec = job_spec(plan(stage, config, refs, self.settings), self.settings, "test")
        self._spools += 1
        spool = self.settings.spool / str(self._spools)
        spool.mkdir(parents=True)
        return Job(spec, config, self.settings, store, spool, Events(io.StringIO()))

    def ingest(self, config: Section) -> Manifest:
        return self.run(INGEST, config)

    def curate(self, config: Section, pairs: Manifest) -> Manifest:
        return self.run(CURATE, config, {"pairs": pairs})

    def ref(self, manifest: Manifest) -> ArtifactRef:
        return manifest.ref(self.store.manifest_uri(manifest.step, manifest.fingerprint))

    def table(self, manifest: Manifest, role: str) -> pa.Table:
        """All objects of a role as one table."""
        return pa.concat_tables([pq.read_table(io.BytesIO(self.store.read(o))) for o in manifest.objects_of(role)])

    def rows(self, manifest: Manifest, role: str) -> list[dict[str, Any]]:
        return self.table(manifest, role).to_pylist()

    def outcomes(self, manifest: Manifest) -> dict[str, str]:
        """Reason (or "kept") by key."""
        return {row["key"]: row["reason"] or "kept" for row in self.rows(manifest, "ledger")}


def write_folder(folder: Path, pictures: Mapping[str, bytes], lines: Iterable[Mapping[str, Any] | str | bytes]) -> Path:
    """An imagefolder: files by name, and metadata.jsonl from records or raw lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in pictures.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    encoded = [x if isinstance(x, bytes) else (x if isinstance(x, str) else json.dumps(x)).encode() for x in lines]
    (folder / "metadata.jsonl").write_bytes(b"\n".join(encoded) + b"\n")
    return folder
