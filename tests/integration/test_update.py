"""`dalle update` and `dalle ingest --retry`: new data for what is there, as a person would bring it."""

import hashlib
from pathlib import Path

import pytest
from support.bad_images import encoded, photo
from support.commands import dalle
from support.data_steps import write_folder
from support.tiny import TinyRun, command_sets
from support.web_sites import Page, site

import flows.update
from dalle_model.records import pair_id_of
from tasks.plain import bind, here
from tasks.store import Store

pytestmark = pytest.mark.usefixtures("steps_here")


def test_new_pairs_are_taken_in_and_the_model_goes_on(tiny_run: TinyRun, tmp_path: Path) -> None:
    folder = tiny_run.copy(tmp_path / "artifacts", before="")
    model = tiny_run.results["fit"].ref.fingerprint
    pictures = {f"{n}.png": encoded(photo(40, 30, seed=n), "PNG") for n in range(12)}
    new = write_folder(
        tmp_path / "new", pictures, [{"file_name": name, "text": f"a new picture {name}"} for name in pictures]
    )
    common = ["--model", model, "--store", str(folder), "--preset", "tiny", "--json", *command_sets()]
    common += ["--out", str(tmp_path / "out")]
    said = dalle("update", f"imagefolder:{new}", "--promote", *common, DALLE_SPOOL=str(tmp_path / "spool"))
    assert said.code == 0, said.err
    made = said.payload["artifacts"]
    assert list(made) == ["ingest", "curate", "encode", "fit", "evaluate"]
    store = Store.open(folder)
    pairs = store.find("ingest", made["ingest"]["fingerprint"])
    assert pairs is not None
    assert pairs.stats["new"] == {"rows_in": 12, "kept": 12, "rejected": 0, "known": 0}
    assert pairs.rows == tiny_run.manifest("ingest").rows + 12
    fitted = store.find("fit", made["fit"]["fingerprint"])
    assert fitted is not None
    assert {used.name: used.fingerprint for used in fitted.inputs}["model"] == model
    assert said.payload["promotion"] == [f"production is now fit {fitted.fingerprint[:12]}"]
    assert store.resolve("production").fingerprint == fitted.fingerprint
    assert pairs.config["config"]["image_px"] == tiny_run.manifest("ingest").config["config"]["image_px"]
    again = dalle("update", f"imagefolder:{new}", "--promote", "--model", made["fit"]["fingerprint"], *common[2:])
    assert again.code == 0 and again.payload["promotion"] == [], again.err
    assert list(again.payload["artifacts"]) == ["ingest"], "with nothing new, nothing is trained"
    assert "holds no pair that the model's data lack" in again.err


def test_an_update_curates_as_the_model_was_and_ends_where_nothing_is_left_to_learn(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_run.copy(tmp_path / "artifacts", before="")
    pictures = {f"{n}.png": encoded(photo(40, 30, seed=n), "PNG") for n in range(2)}
    new = write_folder(tmp_path / "new", pictures, [{"file_name": "0.png", "text": "mine"}])
    digest = hashlib.sha256(pictures["0.png"]).digest()
    assert dalle("forget", f"id:{pair_id_of(digest, 'mine')}", "--store", str(folder)).code == 0
    common = ["--model", tiny_run.results["fit"].ref.fingerprint, "--store", str(folder), "--json"]
    common += ["--out", str(tmp_path / "out")]
    said = dalle("update", f"imagefolder:{new}", *common)
    assert said.code == 0, said.err
    assert list(said.payload["artifacts"]) == ["ingest", "curate"] and "nothing to learn" in said.err
    store = Store.open(folder)
    for step in ("ingest", "curate"):
        made = store.find(step, said.payload["artifacts"][step]["fingerprint"])
        assert made is not None
        before, after = tiny_run.manifest(step).config["config"], made.config["config"]
        chosen = {"source", "limit", "rows_per_shard"}
        assert {k: v for k, v in before.items() if k not in chosen} == {
            k: v for k, v in after.items() if k not in chosen
        }
    monkeypatch.setattr(flows.update, "STEPS", bind(here))
    from_the_form = flows.update.update.fn(f"imagefolder:{new}", model=common[1], store=str(folder))
    assert {step: result.ref.fingerprint for step, result in from_the_form.items()} == {
        step: made["fingerprint"] for step, made in said.payload["artifacts"].items()
    }, "the flow does as the command"
    small = dalle("update", f"imagefolder:{new}", *common, "--set", "ingest.image_px=8")
    assert (small.code, "would be at 8;" in small.error) == (1, True), small.error


def test_a_list_is_ingested_and_tried_again_from_the_command_line(tmp_path: Path) -> None:
    good = Page(encoded(photo(40, 30), "PNG"))
    with site({"/1.png": good, "/2.png": Page(status=503), "/3.png": good}) as web:
        (tmp_path / "list.csv").write_text(
            "url,text\n" + "".join(f"{web.url}/{n}.png,picture {n}\n" for n in (1, 2, 3))
        )
        sets = ["allow_addresses=127.0.0.1", "retries=0", "per_host_per_s=1000"]
        words = ["ingest", f"urls:{tmp_path}/list.csv", *(w for s in sets for w in ("--set", f"ingest.fetch.{s}"))]
        words += ["--store", str(tmp_path / "artifacts"), "--json"]
        spool = str(tmp_path / "spool")
        early = dalle(*words, "--retry", "transient", DALLE_SPOOL=spool)
        assert (early.code, "without --retry first" in early.error) == (2, True)
        assert "--retry transient" in dalle(*words, "--retry", "permanent", DALLE_SPOOL=spool).error
        first = dalle(*words, DALLE_SPOOL=spool)
        assert first.code == 0, first.err
        assert first.payload["artifacts"]["ingest"]["rows"] == 2
        web.pages["/2.png"] = good
        second = dalle(*words, "--retry", "transient", DALLE_SPOOL=spool)
        assert second.payload["artifacts"]["ingest"]["rows"] == 3
        third = dalle(*words, "--retry", "transient", DALLE_SPOOL=spool)
        assert third.payload["artifacts"]["ingest"] | {"seconds": 0} == second.payload["artifacts"]["ingest"] | {
            "reused": True,
            "seconds": 0,
        }
        assert "nothing to try again" in third.err
    out = dalle("export", second.payload["artifacts"]["ingest"]["fingerprint"], str(tmp_path / "out"), *words[-3:])
    assert out.code == 0, out.err
    assert web.url in (tmp_path / "out" / "metadata.jsonl").read_text()
