"""A model measured on a set of another source: refused where training touches it, and on record where not."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.commands import dalle
from support.data_steps import Data, write_folder
from support.tiny import TinyRun, command_sets

from dalle_model.config import CurateConfig, IngestConfig
from tasks.store import Store

pytestmark = pytest.mark.usefixtures("steps_here")


def test_a_foreign_set_that_training_has_seen_is_refused_and_another_one_measured(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    store = Store.open(tiny_run.copy(tmp_path / "artifacts"))
    data = Data(tmp_path)
    model = tiny_run.results["fit"].ref.fingerprint
    shard = pq.read_table(io.BytesIO(store.read(tiny_run.manifest("ingest").objects_of("pairs")[0])))
    picture, caption = shard["image"][0].as_py(), "something that has another name here"
    folder = write_folder(tmp_path / "seen", {"a.png": picture}, [{"file_name": "a.png", "text": caption}])
    every = CurateConfig(valid_share=0, min_side_px=1)
    seen = data.curate(every, data.ingest(IngestConfig(source=f"imagefolder:{folder}", image_px=32)))
    words = [
        "evaluate",
        model,
        "--store",
        str(tmp_path / "artifacts"),
        "--preset",
        "tiny",
        "--json",
        "--out",
        str(tmp_path / "out"),
    ]
    refused = dalle(*words, *command_sets(), "--on", seen.fingerprint)
    assert refused.code == 1
    assert "training pictures touch the evaluation set" in refused.error and seen.fingerprint[:12] in refused.error
    unseen = data.curate(every, data.ingest(IngestConfig(source="scenes:4", image_px=32)))
    measured = dalle(*words, *command_sets(), "--on", unseen.fingerprint)
    assert measured.code == 0, measured.err
    made = store.find("evaluate", measured.payload["artifacts"]["evaluate"]["fingerprint"])
    assert made is not None and [i.fingerprint for i in made.inputs] == [model, unseen.fingerprint]
    record = json.loads(store.read(made.object_of("metrics")))["protocol"]["foreign_set"]
    assert record["evaluation_set"] == unseen.fingerprint and record["touching"] == 0 and record["compared_with"] > 50
    assert "recognisability_heldout" in made.stats
