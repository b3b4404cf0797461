"""Ingest once more: onto an earlier artifact, and only what failed for a passing reason."""

from pathlib import Path
from typing import Any

import pytest
from support.bad_images import encoded, photo
from support.data_steps import Data, write_folder
from support.web_sites import Page, Site, site

from dalle_model.config import CurateConfig, FetchConfig, IngestConfig
from dalle_model.errors import DataError, SourceError, UsageError
from tasks.artifacts import Manifest
from tasks.attempts import last_attempt, may_pass
from tasks.ingest_again import KnownIds
from tasks.job import Job, StopRequested
from tasks.stages import INGEST


def folder_of(path: Path, numbers: range, bad: tuple[int, ...] = ()) -> IngestConfig:
    pictures = {f"{n:03d}.png": b"rubbish" if n in bad else encoded(photo(40, 30, seed=n), "PNG") for n in numbers}
    lines = [{"file_name": name, "text": f"picture {name}"} for name in pictures]
    return IngestConfig(source=f"imagefolder:{write_folder(path, pictures, lines)}", image_px=32, rows_per_shard=10)


def onto(data: Data, config: IngestConfig, base: Manifest) -> Manifest:
    return data.run(INGEST, config, {"pairs": base})


def stop_after(monkeypatch: pytest.MonkeyPatch, *moments: int) -> list[int]:
    commit, commits = Job.commit_part, []

    def stopping(job: Job, n: int, part: object) -> None:
        commit(job, n, part)  # type: ignore[arg-type]
        commits.append(n)
        if len(commits) in moments:
            raise StopRequested

    monkeypatch.setattr(Job, "commit_part", stopping)
    return commits


# --------------------------------------------------------------------------------------------------- onto earlier pairs


def test_only_what_is_new_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data(tmp_path, workers=1)
    base = data.ingest(folder_of(tmp_path / "a", range(25), bad=(4,)))
    grown = folder_of(tmp_path / "b", range(15, 45), bad=(40,))
    made = onto(data, grown, base)
    assert made.objects_of("pairs")[:3] == base.objects_of("pairs"), "the earlier shards are named again"
    assert made.stats["new"] == {"rows_in": 30, "kept": 19, "rejected": 11, "known": 10}
    assert made.rows == base.rows + 19 == len(data.rows(made, "pairs"))
    assert made.stats["rows_in"] == 55 == len(data.rows(made, "ledger"))
    reasons = {row["key"]: row["reason"] for row in data.rows(made, "ledger")[25:]}
    assert [key for key, reason in reasons.items() if reason == "known"] == [f"{n:03d}.png" for n in range(15, 25)]
    assert [used.name for used in made.inputs] == ["pairs"]
    whole = data.ingest(folder_of(tmp_path / "c", range(45), bad=(4, 40)))
    ids = [row["id"] for row in data.rows(made, "pairs")]
    assert ids == [row["id"] for row in data.rows(whole, "pairs")], "the same pairs as in one go"
    curated = data.curate(CurateConfig(valid_share=0), made)
    assert curated.rows == made.rows
    other = Data(tmp_path / "other", workers=3)
    again = other.ingest(folder_of(tmp_path / "a2", range(25), bad=(4,)))
    stop_after(monkeypatch, 1, 2)
    for _ in range(2):
        with pytest.raises(StopRequested):
            onto(other, grown, again)
    assert onto(other, grown, again).sha256 == made.sha256


def test_a_source_with_nothing_new_is_no_failure_and_one_of_rubbish_is(tmp_path: Path) -> None:
    data = Data(tmp_path)
    base = data.ingest(folder_of(tmp_path / "a", range(12)))
    same = onto(data, folder_of(tmp_path / "b", range(12)), base)
    assert same.stats["new"] == {"rows_in": 12, "kept": 0, "rejected": 12, "known": 12}
    assert same.rows == base.rows
    with pytest.raises(DataError, match="as unknown_format"):
        onto(
            data,
            folder_of(tmp_path / "c", range(9), bad=tuple(range(9))).model_copy(update={"max_rejected_share": 0.1}),
            base,
        )


def test_an_earlier_set_does_not_speak_for_a_new_source(tmp_path: Path) -> None:
    data = Data(tmp_path)
    base = data.ingest(folder_of(tmp_path / "a", range(30)))
    with pytest.raises(DataError, match="10 of 10 rows"):  # ten bad of forty would pass
        onto(data, folder_of(tmp_path / "b", range(30, 40), bad=tuple(range(30, 40))), base)
    with site({}) as web:
        fetched = data.ingest(list_on(web, tmp_path / "good.txt", 8, busy=set()))
        config = list_on(web, tmp_path / "gone.txt", 3, busy=set(), gone={0, 1, 2})
        with pytest.raises(SourceError, match="only 0 of 3 fetches"):
            onto(data, config, fetched)


def test_pictures_are_not_stored_smaller_than_those_of_the_earlier_set(tmp_path: Path) -> None:
    data = Data(tmp_path)
    base = data.ingest(folder_of(tmp_path / "a", range(4)))
    smaller = folder_of(tmp_path / "b", range(4, 8)).model_copy(
        update={"image_px": base.config["config"]["image_px"] - 1}
    )
    with pytest.raises(DataError, match=r"are stored at \d+ px, new ones would be at \d+; set ingest.image_px to \d+"):
        onto(data, smaller, base)


def test_each_of_several_sources_has_rows(tmp_path: Path) -> None:
    data, full = Data(tmp_path), folder_of(tmp_path / "a", range(3)).source
    (tmp_path / "nothing" / "x").mkdir(parents=True)
    (tmp_path / "nothing" / "metadata.csv").write_text("file_name,text\n")
    for both in (f"{full} + imagefolder:{tmp_path}/nothing", f"imagefolder:{tmp_path}/nothing * 2 + {full}"):
        with pytest.raises(SourceError, match="holds no rows"):
            data.ingest(IngestConfig(source=both, image_px=32))


def test_known_ids_are_whole_ids() -> None:
    ids = [f"{n:064x}" for n in range(0, 2000, 2)]
    known = KnownIds(ids)
    assert all(identifier in known for identifier in ids)
    assert not any(f"{n:064x}" in known for n in range(1, 2000, 2))
    assert "" not in known
    assert ids[3][:63] not in known
    assert "f" * 64 not in KnownIds([])


# ------------------------------------------------------------------------------------------------------- another try


def list_on(web: Site, path: Path, count: int, busy: set[int], gone: set[int] = frozenset()) -> IngestConfig:  # type: ignore[assignment]
    for n in range(count):
        picture = Page(encoded(photo(40, 30, seed=n), "PNG"))
        web.pages[f"/{n}.png"] = Page(status=503) if n in busy else Page(status=404) if n in gone else picture
    path.write_text("".join(f"{web.url}/{n}.png picture {n}\n" for n in range(count)))
    fetch = FetchConfig(allow_addresses="127.0.0.1", per_host_per_s=1000, retries=0)
    return IngestConfig(source=f"urls:{path}", image_px=32, rows_per_shard=10, fetch=fetch)


def heal(web: Site, *numbers: int) -> None:
    for n in numbers:
        web.pages[f"/{n}.png"] = Page(encoded(photo(40, 30, seed=n), "PNG"))


def again(data: Data, config: IngestConfig) -> Manifest:
    found = last_attempt(config, {}, data.settings)
    return data.run(INGEST, config.model_copy(update={"retry": "transient"}), {"pairs": found})


def outcomes(data: Data, manifest: Manifest, web: Site) -> dict[int, str]:
    rows = data.rows(manifest, "ledger")
    return {int(row["key"].removeprefix(web.url + "/").removesuffix(".png")): row["reason"] or "kept" for row in rows}


def test_only_what_failed_for_a_passing_reason_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site({}) as web:
        config = list_on(web, tmp_path / "a.txt", 45, busy={3, 11, 12, 40}, gone={7, 13})
        data = Data(tmp_path)
        with pytest.raises(UsageError, match="was not ingested"):
            last_attempt(config, {}, data.settings)
        first = data.ingest(config)
        assert first.stats["fetches"] == {"fetched": 39, "transient": 4, "permanent": 2}
        heal(web, 3, 12)
        web.asked.clear()
        second = again(data, config)
        pictures = [path for path in web.asked if path.endswith(".png")]
        assert sorted(pictures) == ["/11.png", "/12.png", "/3.png", "/40.png"]
        expected = dict.fromkeys(range(45), "kept") | dict.fromkeys((7, 13), "http_status")
        assert outcomes(data, second, web) == expected | dict.fromkeys((11, 40), "server_busy")
        assert second.rows == 41 == len(data.rows(second, "pairs"))
        assert second.stats["fetches"] == {"fetched": 41, "transient": 2, "permanent": 2}
        assert second.stats["rows_in"] == second.stats["kept"] + second.stats["rejected"] == 45
        assert second.stats["tried_again"] == {"rows_in": 4, "kept": 2}
        heal(web, 11, 40)
        stop_after(monkeypatch, 1)
        with pytest.raises(StopRequested):
            again(data, config)
        web.asked.clear()
        third = again(data, config)
        assert web.asked.count("/11.png") == 0, "what is in a receipt is not asked for again"
        assert outcomes(data, third, web) == expected
        found = last_attempt(config, {}, data.settings)
        assert (found.fingerprint, may_pass(found)) == (third.fingerprint, 0)
        whole = Data(tmp_path / "whole").ingest(config)
        assert {row["id"] for row in data.rows(third, "pairs")} == {
            row["id"] for row in Data(tmp_path / "whole").rows(whole, "pairs")
        }
        for name in ("rows_in", "kept", "rejected", "reasons", "fetches", "formats"):
            assert third.stats[name] == whole.stats[name], name
        with pytest.raises(DataError, match="nothing to try again"):
            again(data, config)


def test_a_retry_of_a_list_that_was_added_to_other_pairs_leaves_those_alone(tmp_path: Path) -> None:
    with site({}) as web:
        data = Data(tmp_path)
        base = data.ingest(list_on(web, tmp_path / "first.txt", 15, busy={5}))
        web.pages["/rest"] = Page()
        config = list_on(web, tmp_path / "more.txt", 25, busy={5, 20})
        inputs: dict[str, Any] = {"pairs": data.ref(base)}
        onto(data, config, base)
        heal(web, 5, 20)
        found = last_attempt(config, inputs, data.settings)
        made = data.run(INGEST, config.model_copy(update={"retry": "transient"}), {"pairs": found})
        assert made.stats["tried_again"] == {"rows_in": 2, "kept": 2}
        assert made.objects_of("ledger")[:2] == base.objects_of("ledger")
        assert made.rows == 25 == len({row["id"] for row in data.rows(made, "pairs")})
