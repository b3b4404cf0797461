"""Withdrawing pairs: what was made with them is found and marked, the next run leaves them out, a kill costs nothing."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.commands import dalle
from support.processes import DALLE
from support.tiny import ORDER, TinyRun, section_of

from tasks.removals import warnings_of
from tasks.settings import Settings
from tasks.stages import STAGES
from tasks.step import run_step
from tasks.store import Store

pytestmark = pytest.mark.usefixtures("steps_here")


@pytest.fixture
def store(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of its own with everything that the undisturbed run made."""
    store = Store.open(tiny_run.copy(tmp_path / "artifacts"))
    monkeypatch.setenv("DALLE_STORE", str(tmp_path / "artifacts"))
    return store


def rows(store: Store, manifest: Any, role: str) -> list[dict[str, Any]]:
    return [row for o in manifest.objects_of(role) for row in pq.read_table(store.backend.path(o.key)).to_pylist()]


def marks(store: Store) -> dict[str, bytes]:
    return {key: store.load(key) or b"" for prefix in ("removals/", "marks/") for key in store.keys(prefix)}


def test_a_forgotten_pair_is_traced_to_every_shard_and_is_not_in_the_next_run(tiny_run: TinyRun, store: Store) -> None:
    victim = next(row for row in rows(store, tiny_run.manifest("curate"), "curated") if row["split"] == "train")
    said = dalle("forget", victim["id"][:12], "--note", "asked by mail", "--json")
    assert said.code == 0, said.err
    found = {entry["step"]: entry for entry in said.payload["artifacts"]}
    assert tuple(sorted(found, key=ORDER.index)) == ORDER, (
        "pairs, curated, tokenizer, tokens, model, evaluation, pictures"
    )
    assert said.payload["ids"] == [victim["id"]]
    for step, role in (("ingest", "pairs"), ("encode", "tokens")):
        manifest = tiny_run.manifest(step)
        holding = [
            o.key
            for o in manifest.objects_of(role)
            if victim["id"] in pq.read_table(store.backend.path(o.key))["id"].to_pylist()
        ]
        assert [o["key"] for o in found[step]["objects"]] == holding and len(holding) == 1 < len(
            manifest.objects_of(role)
        )
    assert found["curate"]["splits"] == {"train": 1}
    assert {o["role"] for o in found["generate"]["objects"]} >= {"generations", "gallery"}

    before = marks(store)
    again = dalle("forget", f"id:{victim['id']}", "--json")
    assert again.payload["artifacts"] == said.payload["artifacts"] and not again.payload["new"]
    assert marks(store) == before, "marks are written once"
    assert all(entry["withdrawn"] for entry in dalle("ls", "--json").payload["artifacts"])
    said_before = warnings_of(store, tiny_run.inputs("fit"))
    assert len(said_before) == 1 and "withdrawn since" in said_before[0]
    assert warnings_of(store, tiny_run.inputs("curate")) == []
    assert "withdrawn pairs" in dalle("verify", tiny_run.results["fit"].ref.fingerprint).out

    settings = Settings(store=store.uri.removeprefix("file://"), spool=Path(store.backend.root) / "spool")  # type: ignore[attr-defined]
    result = run_step(STAGES["curate"], section_of("curate", tiny_run.config), tiny_run.inputs("curate"), settings)
    assert not result.reused and result.ref.rows == tiny_run.results["curate"].ref.rows - 1
    rebuilt = store.find("curate", result.ref.fingerprint)
    assert victim["id"] not in [row["id"] for row in rows(store, rebuilt, "curated")]
    reason = next(row for row in rows(store, rebuilt, "ledger") if row["id"] == victim["id"])
    assert (reason["kept"], reason["reason"], reason["rule"], reason["detail"]) == (
        False,
        "removed",
        "consent",
        "dalle forget",
    )
    assert run_step(STAGES["curate"], section_of("curate", tiny_run.config), tiny_run.inputs("curate"), settings).reused
    listed = {e["fingerprint"]: e["withdrawn"] for e in dalle("ls", "--json").payload["artifacts"]}
    assert listed[result.ref.fingerprint] == ""


def test_sweeping_what_was_forgotten_spares_names_and_what_others_need(tiny_run: TinyRun, store: Store) -> None:
    victim = rows(store, tiny_run.manifest("curate"), "curated")[0]
    key = next(row["key"] for row in rows(store, tiny_run.manifest("ingest"), "pairs") if row["id"] == victim["id"])
    store.set_ref("production", tiny_run.manifest("fit"))
    said = dalle("forget", key, "--dry-run", "--json")
    assert said.payload["rule"]["kind"] == "key" and marks(store) == {}
    assert dalle("forget", key).code == 0
    kept = dalle("sweep", "--forgotten", "--older-than", "0", "--json").payload
    gone = {tiny_run.results[step].ref.fingerprint for step in ("evaluate", "generate")}
    assert set(kept["artifacts"]) == gone
    assert {k.fingerprint for k in store.artifacts()} == {r.ref.fingerprint for r in tiny_run.results.values()} - gone
    assert store.verify(tiny_run.manifest("fit")) == []


def test_a_whole_source_and_what_nobody_knows(tiny_run: TinyRun, store: Store) -> None:
    assert len(dalle("forget", "openmoji", "--dry-run", "--json").payload["ids"]) == 96
    said = dalle("forget", "openmoj")
    assert said.code == 2 and "sources near: openmoji" in said.err
    ahead = dalle("forget", "source:somebody", "--json")
    assert ahead.code == 0 and ahead.payload["artifacts"] == []
    curate = section_of("curate", tiny_run.config)
    settings = Settings(store=store.uri.removeprefix("file://"))
    assert run_step(STAGES["curate"], curate, tiny_run.inputs("curate"), settings).reused, (
        "another source's is not ours"
    )


@pytest.mark.parametrize("moment", ["forget.after_rule", "forget.after_mark:3", "store.file_open:2"])
def test_a_killed_forget_is_finished_by_repeating_it(
    moment: str, tiny_run: TinyRun, store: Store, tmp_path: Path
) -> None:
    victim = rows(store, tiny_run.manifest("curate"), "curated")[3]["id"]
    command = [*DALLE, "forget", victim]
    env = os.environ | {"DALLE_FAULT": moment}
    assert subprocess.run(command, env=env, capture_output=True).returncode == -9
    part = marks(store)
    assert dalle("forget", victim).code == 0
    whole = marks(store)
    assert len(whole) == 1 + len(ORDER)
    assert part.items() <= whole.items()
