"""The last bytes of withdrawn pairs: gone from every object, while what was made from the other pairs stays whole."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.bad_images import encoded, photo
from support.commands import dalle
from support.data_steps import Data, write_folder
from support.object_stores import artifact, shared

import tasks.curate
import tasks.erase_pairs
import tasks.forget
from dalle_model.config import CurateConfig, IngestConfig
from dalle_model.errors import CommitConflict, DataError, UsageError
from tasks.artifacts import Manifest
from tasks.erase_pairs import blank_picture, erase_pairs
from tasks.forget import erase, forget, tainted
from tasks.job import load_ancestor
from tasks.removals import marked
from tasks.stages import INGEST
from tasks.store import Store

CONFIG = CurateConfig(valid_share=0.2, near_duplicate_bits=2, embedding="thumbnail")
VICTIM = "007.png"


def source(folder: Path, numbers: range) -> IngestConfig:
    pictures = {f"{n:03d}.png": encoded(photo(40, 30, seed=n), "PNG") for n in numbers}
    lines = [{"file_name": name, "text": f"picture {name}"} for name in pictures]
    return IngestConfig(source=f"imagefolder:{write_folder(folder, pictures, lines)}", image_px=32, rows_per_shard=5)


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Data, dict[str, Manifest]]:
    """Pairs, more pairs onto them, and a curation of both made before and after one pair was withdrawn."""
    return prepared(Data(tmp_path, workers=1), tmp_path)


def prepared(data: Data, folder: Path) -> tuple[Data, dict[str, Manifest]]:
    made = {"base": data.ingest(source(folder / "a", range(10)))}
    made["pairs"] = data.run(INGEST, source(folder / "b", range(8, 13)), {"pairs": made["base"]})
    made["before"] = data.curate(CONFIG, made["pairs"])
    victim = row_of(data, made["base"])
    forget(data.store, victim["id"], data.settings)
    made["after"] = data.curate(CONFIG, made["pairs"])
    assert made["after"].rows == made["before"].rows - 1
    return data, made


def row_of(data: Data, pairs: Manifest) -> dict[str, Any]:
    return next(row for row in data.rows(pairs, "pairs") if row["key"] == VICTIM)


def sweep(data: Data) -> tasks.erase_pairs.Blanked:
    """What ``dalle sweep --forgotten --pairs --older-than 0`` does."""
    store = data.store
    blanked = erase_pairs(store, data.settings, erase(store))
    store.sweep(older_than_s=-60)
    return blanked


def cells(store: Store) -> Iterator[object]:
    """Every value of every table in the store, and every other object as it is."""
    for key in store.keys("data/"):
        data = store.load(key) or b""
        if key.endswith(".parquet"):
            for column in pq.read_table(io.BytesIO(data)).columns:
                yield from column.to_pylist()
        else:
            yield data


def check(data: Data, made: dict[str, Manifest], victim: dict[str, Any]) -> None:
    store = data.store
    left = list(cells(store))
    assert not [v for v in left if v in (victim["image"], victim["caption"], victim["key"])]
    assert victim["id"] in left, "its number stays, so that it is known to be withdrawn"
    for name in ("base", "pairs", "after"):
        manifest = store.find(made[name].step, made[name].fingerprint)
        assert manifest is not None and store.verify(manifest) == []
        assert manifest.replaces == (made[name].sha256,) and manifest.rows == made[name].rows
    curated = store.find("curate", made["after"].fingerprint)
    assert curated is not None and curated.object_of("curated") == made["after"].object_of("curated")
    pairs = load_ancestor(store, curated, "pairs")
    shards = [data.store.read(obj) for obj in pairs.objects_of("pairs")]
    for row in data.rows(curated, "curated"):
        found = pq.read_table(io.BytesIO(shards[row["shard"]])).slice(row["row"], 1).to_pylist()[0]
        assert (found["id"], found["caption"]) == (row["id"], row["caption"]), "rows are where they were"
    assert store.find("curate", made["before"].fingerprint) is None
    assert not marked(store).keys() & {made["base"].fingerprint, made["pairs"].fingerprint}


def test_nothing_of_a_forgotten_pair_is_left_in_a_folder(chain: tuple[Data, dict[str, Manifest]]) -> None:
    data, made = chain
    victim = row_of(data, made["base"])
    assert victim["image"] in list(cells(data.store))
    assert sweep(data).artifacts == {made[name].fingerprint: 1 for name in ("base", "pairs", "after")}
    check(data, made, victim)
    sheet = data.store.find("ingest", made["base"].fingerprint)
    assert sheet is not None and data.store.read(sheet.object_of("sheet.kept")) == blank_picture()
    before = data.store.keys("")
    assert sweep(data).artifacts == {} and data.store.keys("") == before, "a second run finds nothing to do"
    assert forget(data.store, f"id:{victim['id']}", data.settings).touched == []
    again = data.curate(CONFIG.model_copy(update={"seed": 1}), made["pairs"])
    reason = next(row["reason"] for row in data.rows(again, "ledger") if row["id"] == victim["id"])
    assert (reason, again.rows) == ("removed", made["after"].rows)


def test_what_is_withdrawn_is_found_by_odd_names_and_the_unknown_is_an_error(tmp_path: Path) -> None:
    data, digits = Data(tmp_path), "ab" * 32
    names = [digits, "id:x y.png", "-dash.png", "a/ü'\"$(x).png", "line\nend.png", "a/b.png"]
    pictures = {name: encoded(photo(40, 30, seed=n), "PNG") for n, name in enumerate(names)}
    lines = [{"file_name": name, "text": ["one", "two"]} for name in names]
    pairs = data.ingest(
        IngestConfig(source=f"imagefolder:{write_folder(tmp_path / 'a', pictures, lines)}", image_px=32)
    )
    of_key = {name: [r["id"] for r in data.rows(pairs, "pairs") if r["key"] == name] for name in names}
    for name in names:
        what = f"key:{name}" if name.startswith("id:") else name
        found = forget(data.store, what, data.settings, dry_run=True)
        assert (found.rule.kind, found.rule.value, found.ids) == ("key", name, sorted(of_key[name])), name
    one = forget(data.store, of_key["a/b.png"][0], data.settings, dry_run=True)
    assert (one.rule.kind, one.pairs, one.others) == ("id", 1, {"a/b.png": 1})
    assert forget(data.store, f"id:{'c' * 64}", data.settings, dry_run=True).pairs == 0
    for wrong, words in (("c" * 64, "no pair id"), ("", "nothing to withdraw"), ("b.png", "keys that end so: a/b.png")):
        with pytest.raises(UsageError, match=words):
            forget(data.store, wrong, data.settings)
    said = dalle("forget", of_key["a/b.png"][0], "--store", data.settings.store, "--dry-run")
    assert "1 more pairs have other captions of that picture: `dalle forget key:a/b.png`" in said.out


@pytest.mark.server
def test_nothing_of_a_forgotten_pair_is_left_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = shared("moto")
    for name, value in server.env().items():
        monkeypatch.setenv(name, value)
    data = Data(tmp_path, workers=1)
    data.settings = data.settings.model_copy(update={"store": server.uri()})
    _, made = prepared(data, tmp_path)
    victim = row_of(data, made["base"])
    sweep(data)
    check(data, made, victim)


def test_killed_at_any_moment_all_is_whole_and_a_second_run_goes_on(
    chain: tuple[Data, dict[str, Manifest]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, made = chain
    victim = row_of(data, made["base"])
    root = Path(data.settings.store)
    shutil.copytree(root, tmp_path / "untouched")
    erase(data.store)
    moments: list[str] = []
    monkeypatch.setattr(tasks.erase_pairs, "fault_point", moments.append)
    sweep(data)
    whole = {key: data.store.load(key) for key in data.store.keys("")}
    assert {"erase.after_shard", "erase.after_manifest", "erase.after_receipt"} == set(moments)
    turns = [at for at in range(1, len(moments)) if moments[at] != moments[at - 1]]  # where one kind of work ends
    for moment in (0, *turns, len(moments) - 1):
        shutil.rmtree(root)
        shutil.copytree(tmp_path / "untouched", root)
        countdown = iter(range(moment, -1, -1))

        def dying(name: str, countdown: Iterator[int] = countdown) -> None:
            if next(countdown, -1) == 0:
                raise KeyboardInterrupt(name)

        monkeypatch.setattr(tasks.erase_pairs, "fault_point", dying)
        with pytest.raises(KeyboardInterrupt):
            sweep(data)
        for manifest in (data.store.find(made[name].step, made[name].fingerprint) for name in ("pairs", "after")):
            assert manifest is not None and data.store.verify(manifest) == []
        monkeypatch.setattr(tasks.erase_pairs, "fault_point", lambda name: None)
        sweep(data)
        check(data, made, victim)
        after = data.store.find("ingest", made["pairs"].fingerprint)
        assert after is not None and after.to_bytes() == whole[data.store.manifest_key("ingest", after.fingerprint)]


def test_pictures_that_a_named_artifact_needs_wait(chain: tuple[Data, dict[str, Manifest]]) -> None:
    data, made = chain
    data.store.set_ref("production", made["before"])
    blanked = sweep(data)
    assert blanked.artifacts == {made["after"].fingerprint: 1}
    assert set(blanked.waits) == {made[name].fingerprint for name in ("base", "pairs", "before")}
    assert all("the name production needs it" in why for why in blanked.waits.values())
    assert row_of(data, made["base"])["caption"] == f"picture {VICTIM}"
    data.store.set_ref("production", made["after"])
    assert set(sweep(data).artifacts) == {made["base"].fingerprint, made["pairs"].fingerprint}
    assert made["base"].object_of("sheet.kept").key not in data.store.keys("data/")


def test_another_process_that_was_faster_is_not_overwritten(
    chain: tuple[Data, dict[str, Manifest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = chain
    backend = type(data.store.backend)
    monkeypatch.setattr(backend, "replace", lambda *_: False)
    with pytest.raises(CommitConflict, match="run this command again"):
        sweep(data)


def test_the_command_says_what_it_erases(chain: tuple[Data, dict[str, Manifest]]) -> None:
    data, made = chain
    store = ["--store", data.settings.store, "--json"]
    assert dalle("sweep", "--pairs", *store).code == 2
    planned = dalle("sweep", "--forgotten", "--pairs", "--dry-run", *store).payload
    assert set(planned["erased_pairs"]) == {made[name].fingerprint for name in ("base", "pairs", "after")}
    assert row_of(data, made["base"])["caption"], "a dry run erases nothing"
    said = dalle("sweep", "--forgotten", "--pairs", "--older-than", "0", *store)
    assert (said.code, said.payload["erased_pairs"]) == (0, planned["erased_pairs"])


def test_a_run_during_which_pairs_are_withdrawn_keeps_none_of_them_unmarked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked once, before hours of work, and what it committed afterwards was known to nobody."""
    data = Data(tmp_path, workers=1)
    pairs = data.ingest(source(tmp_path / "a", range(6)))
    first, second = (row["id"] for row in data.rows(pairs, "pairs")[:2])
    report = tasks.curate.make_report

    def withdraw_first(*arguments: Any) -> Any:
        forget(data.store, first, data.settings)
        return report(*arguments)

    monkeypatch.setattr(tasks.curate, "make_report", withdraw_first)
    with pytest.raises(DataError, match="pairs were withdrawn since this run began; start it again"):
        data.curate(CONFIG, pairs)
    monkeypatch.undo()

    made = {}
    write_rule = tasks.forget.write_rule

    def commit_first(*arguments: Any) -> bool:
        made["curated"] = made.get("curated") or data.curate(CONFIG, pairs)
        return write_rule(*arguments)

    monkeypatch.setattr(tasks.forget, "write_rule", commit_first)
    forget(data.store, second, data.settings)
    assert made["curated"].rows and made["curated"].fingerprint in marked(data.store)

    # made from what a sweep removed meanwhile
    late = made["curated"].ref("").as_input("curated")
    model = artifact(data.store, "late", step="fit", kind="model", inputs=(late,))
    assert made["curated"] in erase(data.store).removed
    data.store.commit(model)
    assert model.fingerprint in tainted(data.store, [model])
