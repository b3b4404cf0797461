"""The command line: what it prints, how it exits, what it calls things, and that nothing is done twice."""

import json
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.commands import dalle
from support.processes import DALLE, LONG_S, closed_port
from support.tiny import ORDER, TinyRun, command_sets, fingerprints, tiny_config

from flows.presets import PRESETS

pytestmark = pytest.mark.usefixtures("steps_here")

COMMANDS = (
    "run",
    *ORDER,
    "ls",
    "show",
    "verify",
    "explain",
    "promote",
    "rollback",
    "sweep",
    "forget",
    "presets",
    "config",
    "cost",
    "complete",
    "vary",
    "caption",
    "continue",
    "loop",
    "doctor",
    "deploy",
    "up",
)
ENTRY_KEYS = {"fingerprint", "uri", "manifest_sha256", "rows", "bytes", "reused", "seconds"}


@pytest.fixture
def store(tiny_run: TinyRun, tmp_path: Path) -> str:
    """A store of its own with everything that the undisturbed run made."""
    return str(tiny_run.copy(tmp_path / "artifacts"))


@pytest.fixture(scope="module")
def shared(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same, for commands that only look."""
    return str(tiny_run.copy(tmp_path_factory.mktemp("shared") / "artifacts"))


# help and exit codes


def test_help_names_every_command() -> None:
    said = dalle("--help")
    assert said.code == 0
    assert [command for command in COMMANDS if command not in said.out] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    said = dalle(command, "--help")
    assert said.code == 0
    assert f"{command}" in said.out and len(said.out.splitlines()) > 5


@pytest.mark.parametrize(
    "words",
    [
        ("paint",),
        ("run",),
        ("run", "tiny", "--no-such-option"),
        ("generate",),
        ("generate", "a heart", "--n", "many"),
        ("encode", "abcd"),
    ],
)
def test_wrong_usage_exits_with_2_and_one_message(words: tuple[str, ...], tmp_path: Path) -> None:
    said = dalle(*words, DALLE_STORE=str(tmp_path / "artifacts"))
    assert said.code == 2
    assert "Traceback" not in said.err and len(said.err) > 10
    assert not (tmp_path / "artifacts").exists()


# the whole chain


def test_a_second_run_does_no_work_and_says_so(tiny_run: TinyRun, store: str, tmp_path: Path) -> None:
    command = [*DALLE, "run", "tiny", "--store", store, "--out", str(tmp_path / "out"), "--json", *command_sets()]
    before = _snapshot(Path(store))
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S)
    assert ended.returncode == 0, ended.stderr
    assert "nothing to do: every artifact was already there" in ended.stderr
    assert _snapshot(Path(store)) == before
    payload = json.loads(ended.stdout.splitlines()[-1])
    assert len(ended.stdout.splitlines()) == 1, "with --json standard output is for programs alone"
    assert tuple(payload["artifacts"]) == ORDER
    for stage, entry in payload["artifacts"].items():
        ref = tiny_run.results[stage].ref
        assert set(entry) == ENTRY_KEYS
        assert entry["reused"] is True
        assert (entry["fingerprint"], entry["manifest_sha256"]) == (ref.fingerprint, ref.manifest_sha256)
        assert (entry["rows"], entry["bytes"]) == (ref.rows, ref.bytes)
        assert entry["uri"].startswith("file://") and entry["uri"].endswith(f"manifests/{stage}/{ref.fingerprint}.json")
    assert payload["metrics"]["recognisability"] >= 0
    for key, name in (("gallery", "gallery.html"), ("contact_sheet", "contact_sheet.png"), ("report", "report.html")):
        assert Path(payload[key]) == tmp_path / "out" / "tiny" / name
        assert Path(payload[key]).stat().st_size > 500


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file; the probe's lock file aside."""
    return {
        str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file() and p.name != ".lock"
    }


ALL, AFTER_INGEST, AFTER_CURATE = ORDER, ORDER[1:], ORDER[2:]


@pytest.mark.parametrize(
    ("knob", "reruns"),
    [
        ("ingest.limit=95", ALL),
        ("ingest.image_px=40", ALL),
        ("ingest.rows_per_shard=31", ALL),
        ("curate.min_caption_words=2", AFTER_INGEST),
        ("curate.seed=1", AFTER_INGEST),
        ("curate.holdout_pattern=woman", AFTER_INGEST),
        ("tokenizer.width=8", AFTER_CURATE),
        ("tokenizer.steps=8", AFTER_CURATE),
        ("tokenizer.optim.lr=0.002", AFTER_CURATE),
        ("encode.max_text_tokens=15", ("encode", "fit", "evaluate", "generate")),
        ("encode.text_vocab_size=300", ("encode", "fit", "evaluate", "generate")),
        ("model.depth=1", ("fit", "evaluate", "generate")),
        ("train.steps=10", ("fit", "evaluate", "generate")),
        ("train.optim.seed=1", ("fit", "evaluate", "generate")),
        ("sampler.temperature=0.5", ("fit", "evaluate", "generate")),
        ("evaluate.num_captions=3", ("evaluate",)),
        ("evaluate.sampler.temperature=0.5", ("evaluate",)),
        ("generate.n=3", ("generate",)),
        ("generate.seed=1", ("generate",)),
        ('generate.prompts=["a cat"]', ("generate",)),
        ("generate.sampler.top_k=5", ("generate",)),
    ],
)
def test_one_knob_reruns_exactly_what_depends_on_it(knob: str, reruns: tuple[str, ...], tiny_run: TinyRun) -> None:
    before = {stage: result.ref.fingerprint for stage, result in tiny_run.results.items()}
    after = fingerprints(tiny_config(knob), tiny_run)
    assert tuple(stage for stage in ORDER if after[stage] != before[stage]) == reruns


def test_the_same_values_written_otherwise_rerun_nothing(tiny_run: TinyRun) -> None:
    before = {stage: result.ref.fingerprint for stage, result in tiny_run.results.items()}
    assert (
        fingerprints(tiny_config("ingest.limit=96", "train.optim.steps=9", "fit.train.optim.batch_size=8"), tiny_run)
        == before
    )


def test_a_changed_knob_runs_that_stage_and_reuses_the_others(tiny_run: TinyRun, store: str, tmp_path: Path) -> None:
    sets = command_sets("evaluate.num_captions=3")
    said = dalle("run", "tiny", "--plain", "--store", store, "--out", str(tmp_path / "out"), "--json", *sets)
    assert said.code == 0, said.err
    artifacts = said.payload["artifacts"]
    assert [stage for stage, entry in artifacts.items() if not entry["reused"]] == ["evaluate"]
    assert "nothing to do" not in said.err


# one command per stage


def test_each_stage_command_finds_what_the_chain_made(tiny_run: TinyRun, shared: str, tmp_path: Path) -> None:
    made = {stage: result.ref.fingerprint for stage, result in tiny_run.results.items()}
    commands: dict[str, tuple[str, ...]] = {
        "ingest": ("ingest", "openmoji"),
        "curate": ("curate", made["ingest"]),
        "fit-tokenizer": ("fit-tokenizer", made["curate"][:10]),
        "encode": ("encode", made["curate"], "--tokenizer", made["fit-tokenizer"][:8]),
        "fit": ("fit", made["encode"]),
        "evaluate": ("evaluate", made["fit"], "--out", str(tmp_path / "evaluate")),
    }
    assert tiny_config().generate.n == 2
    prompts = tiny_config().generate.prompts
    commands["generate"] = (
        "generate",
        *prompts,
        "--model",
        made["fit"],
        "--n",
        "2",
        "--seed",
        "0",
        "--out",
        str(tmp_path / "generate"),
    )
    for stage, words in commands.items():
        said = dalle(*words, "--preset", "tiny", "--store", shared, "--json", *command_sets())
        assert said.code == 0, said
        entry = said.payload["artifacts"][stage]
        assert (entry["fingerprint"], entry["reused"]) == (made[stage], True), stage
    assert (tmp_path / "evaluate" / "report.html").exists()


def test_generate_writes_pictures_a_table_and_a_gallery(tiny_run: TinyRun, store: str, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    file = tmp_path / "prompts.txt"
    file.write_text("a Red Heart!\n")
    words = (
        "a red heart",
        "über/../cat",
        "--prompts",
        str(file),
        "--n",
        "2",
        "--seed",
        "7",
        "--store",
        store,
        "--out",
        str(out),
        "--json",
    )
    said = dalle("generate", *words)  # the model made last is the default
    assert said.code == 0, said
    names = sorted(p.name for p in out.iterdir())
    pictures = [n for n in names if n.endswith(".png") and n != "contact_sheet.png"]
    assert {"a-red-heart-0.png", "a-red-heart-1.png", "über-cat-0.png", "über-cat-1.png"} <= set(pictures)
    assert len(pictures) == 6, "two prompts that read alike as file names are kept apart"
    assert {"generations.parquet", "gallery.html", "contact_sheet.png"} <= set(names)
    with Image.open(out / "a-red-heart-0.png") as picture:
        assert picture.size == (32, 32)
        assert picture.info["Comment"] == "AI generated"
        assert json.loads(picture.info["dalle-prefect"])["model"] == tiny_run.results["fit"].ref.fingerprint
    rows = pq.read_table(out / "generations.parquet").to_pylist()
    assert [(r["prompt"], r["index"], r["seed"]) for r in rows[:2]] == [("a red heart", 0, 7), ("a red heart", 1, 7)]
    assert {r["status"] for r in rows} == {"drawn"}
    assert said.payload["artifacts"]["generate"]["rows"] == 6
    assert Path(said.payload["gallery"]) == out / "gallery.html"
    assert said.payload["metrics"] == {"prompts": 3, "drawn": 6, "refused": 0, "cut": 0}
    first = {n: (out / n).read_bytes() for n in pictures}
    again = dalle("generate", *words)
    assert again.payload["artifacts"]["generate"]["reused"] is True
    assert {n: (out / n).read_bytes() for n in pictures} == first


# references


def test_a_reference_is_a_fingerprint_a_prefix_a_uri_or_a_name(tiny_run: TinyRun, store: str) -> None:
    fingerprint = tiny_run.results["fit"].ref.fingerprint
    assert dalle("promote", fingerprint[:12], "--as", "best", "--store", store).code == 0
    key = f"manifests/fit/{fingerprint}.json"
    for ref in (
        fingerprint,
        fingerprint[:8],
        fingerprint.upper(),
        f"file://{store}/{key}",
        f"{store}/{key}",
        key,
        "best",
    ):
        said = dalle("show", ref, "--store", store, "--json")
        assert said.code == 0, (ref, said)
        assert said.payload["fingerprint"] == fingerprint
        assert said.payload["sha256"] == tiny_run.results["fit"].ref.manifest_sha256


def test_names_move_and_go_back(tiny_run: TinyRun, store: str) -> None:
    first, second = (tiny_run.results[stage].ref.fingerprint for stage in ("fit", "fit-tokenizer"))
    named = ("--as", "best", "--store", store)
    assert dalle("promote", first, *named, "--json").payload == {"name": "best", "fingerprint": first}
    assert dalle("promote", second, *named).code == 0
    listed = dalle("ls", "--store", store, "--json").payload["artifacts"]
    assert [a["fingerprint"] for a in listed if a["names"] == ["best"]] == [second]
    assert dalle("rollback", "best", "--store", store, "--json").payload == {"name": "best", "fingerprint": first}
    said = dalle("rollback", "best", "--store", store)
    assert said.code == 1
    assert "there is nothing to go back to" in said.error


# looking


def test_ls_lists_all_in_the_order_they_were_made_or_one_kind(tiny_run: TinyRun, shared: str, tmp_path: Path) -> None:
    said = dalle("ls", "--store", shared, "--json")
    assert tuple(a["step"] for a in said.payload["artifacts"]) == ORDER
    assert [a["step"] for a in dalle("ls", "--kind", "model", "--store", shared, "--json").payload["artifacts"]] == [
        "fit"
    ]
    lines = dalle("ls", "--store", shared).out
    assert all(tiny_run.results[stage].ref.fingerprint[:12] in lines for stage in ORDER)
    empty = dalle("ls", "--store", str(tmp_path / "nowhere"))
    assert empty.code == 0 and "holds no artifact" in empty.out
    assert not (tmp_path / "nowhere").exists(), "to look at a store does not make it"


@pytest.mark.parametrize("stage", ORDER)
def test_show_names_inputs_settings_figures_and_objects(stage: str, tiny_run: TinyRun, shared: str) -> None:
    manifest = tiny_run.manifest(stage)
    said = dalle("show", manifest.fingerprint, "--store", shared)
    assert said.code == 0
    for word in (manifest.sha256, *(i.fingerprint[:12] for i in manifest.inputs), *(o.key for o in manifest.objects)):
        assert word in said.out
    assert dalle("show", manifest.fingerprint, "--store", shared, "--json").payload["objects"] == [
        o.model_dump() for o in manifest.objects
    ]


def test_verify_names_the_object_in_which_one_byte_differs(tiny_run: TinyRun, store: str) -> None:
    manifest = tiny_run.manifest("fit")
    good = dalle("verify", manifest.fingerprint, "--store", store)
    assert good.code == 0 and f"all {len(manifest.objects)} objects" in good.out
    weights = manifest.object_of("weights")
    path = Path(store) / weights.key
    data = bytearray(path.read_bytes())
    data[-7] ^= 0x10
    path.write_bytes(data)
    bad = dalle("verify", manifest.fingerprint, "--store", store, "--json")
    assert bad.code == 1
    assert [p["key"] for p in bad.payload["problems"]] == [weights.key]
    assert weights.key in bad.err
    (Path(store) / manifest.objects[-1].key).unlink()
    assert {
        p["key"] for p in dalle("verify", manifest.fingerprint, "--store", store, "--json").payload["problems"]
    } == {weights.key, manifest.objects[-1].key}


def test_what_was_found_damaged_is_made_again_and_is_whole_then(tiny_run: TinyRun, store: str) -> None:
    manifest = tiny_run.manifest("curate")
    path = Path(store) / manifest.object_of("curated").key
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert dalle("verify", manifest.fingerprint, "--store", store).code == 1
    said = dalle(
        "curate",
        tiny_run.results["ingest"].ref.fingerprint,
        "--preset",
        "tiny",
        "--store",
        store,
        "--json",
        *command_sets(),
    )
    assert said.code == 0, said
    assert said.payload["artifacts"]["curate"]["reused"] is False
    assert said.payload["artifacts"]["curate"]["manifest_sha256"] == manifest.sha256
    assert dalle("verify", manifest.fingerprint, "--store", store).code == 0


def test_explain_says_why_an_artifact_was_made_and_what_would_run(tiny_run: TinyRun, shared: str) -> None:
    fingerprint = tiny_run.results["fit"].ref.fingerprint
    said = dalle("explain", fingerprint, "--store", shared)
    assert said.code == 0 and "no artifact has this fingerprint" in said.out
    common = ("--preset", "tiny", "--store", shared, "--json", *command_sets())
    same = dalle("explain", "fit", *common).payload
    assert same["reuse"] is True and same["fingerprint"] == fingerprint
    itself = dalle("explain", "fit", *common, "--set", "train.steps=10").payload
    assert itself["reuse"] is False
    upstream = dalle("explain", "fit", *common, "--set", "curate.seed=1").payload
    assert upstream["reuse"] is False and "curate" in upstream["decision"]
    unaffected = dalle("explain", "encode", *common, "--set", "train.steps=10").payload
    assert unaffected["reuse"] is True


def test_explain_names_the_knob_that_separates_two_artifacts(tiny_run: TinyRun, store: str, tmp_path: Path) -> None:
    pairs = tiny_run.results["ingest"].ref.fingerprint
    sets = command_sets("curate.max_aspect=2.5")
    made = dalle("curate", pairs, "--preset", "tiny", "--store", store, "--json", *sets).payload["artifacts"]["curate"][
        "fingerprint"
    ]
    said = dalle("explain", made, "--store", store)
    assert "max_aspect 3.0 -> 2.5" in said.out


def test_sweep_takes_only_what_no_artifact_names(tiny_run: TinyRun, store: str) -> None:
    stray = Path(store) / "data" / "ab" / ("ab" + "0" * 62 + ".bin")
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(b"left over")
    time.sleep(0.05)
    assert dalle("sweep", "--store", store, "--json").payload["removed"] == [], "younger than a day"
    dry = dalle("sweep", "--older-than", "0", "--dry-run", "--store", store, "--json").payload
    assert dry == {"removed": [f"data/ab/{stray.name}"], "bytes": 9}
    assert stray.exists()
    assert dalle("sweep", "--older-than", "0", "--store", store).code == 0
    assert not stray.exists()
    for stage in ORDER:
        assert dalle("verify", tiny_run.results[stage].ref.fingerprint, "--store", store).code == 0


def test_presets_and_config_describe_every_knob() -> None:
    presets = dalle("presets", "--json").payload["presets"]
    assert set(presets) == set(PRESETS) and all(len(text) > 20 for text in presets.values())
    said = dalle("config", "tiny", "--set", "train.steps=77")
    assert said.code == 0
    assert "train.optim.steps = 77   (int >= 1) Optimiser updates." in said.out
    assert "[curate]" in said.out and "[model]" in said.out
    assert dalle("config", "tiny", "--set", "train.steps=77", "--json").payload["fit"]["train"]["optim"]["steps"] == 77


def test_doctor_examines_machine_store_and_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=9e9))  # it wants 2 GB
    said = dalle("doctor", "--store", str(tmp_path / "artifacts"), "--json", DALLE_SPOOL=str(tmp_path / "spool"))
    checks = {check["name"]: check for check in said.payload["checks"]}
    assert set(checks) == {"versions", "devices", "disk", "store", "prefect"}
    assert all(check["ok"] for check in checks.values()), checks
    assert said.code == 0
    assert "create-only writes honoured" in checks["store"]["text"]
    with closed_port() as port:
        api = f"http://127.0.0.1:{port}/api"
        ill = dalle("doctor", "--store", str(tmp_path / "artifacts"), "--json", PREFECT_API_URL=api)
    assert ill.code == 1
    assert [c["name"] for c in ill.payload["checks"] if not c["ok"]] == ["prefect"]


# curation


def test_curation_is_asked_what_other_thresholds_would_keep_and_shows_its_report(
    tiny_run: TinyRun, shared: str, tmp_path: Path
) -> None:
    pairs, given = tiny_run.results["ingest"].ref.fingerprint, ["--store", shared, "--preset", "tiny", *command_sets()]
    for way in (("curate", "--what-if"), ("what-if",)):
        said = dalle(way[0], pairs, *way[1:], "--json", *given)
        assert said.code == 0, said.err
        moves = said.payload["moves"]
        words = [m for m in moves if m["knob"] == "min_caption_words"]
        assert [m["threshold"] for m in words] == sorted(m["threshold"] for m in words)
        assert {m["knob"] for m in moves} >= {"max_aspect", "max_profanity", "max_blur", "max_boilerplate"}
    made = said.payload["curated"]
    tight = ["--set", "curate.min_caption_words=2"]
    own = dalle("what-if", made, "--store", shared, "--json", *tight).payload["moves"]
    assert own == dalle("what-if", pairs, "--json", *given, *tight).payload["moves"], "their own thresholds and --set"
    for wrong, words_ in (("curate.min_words=2", "min_words"), ("curate.max_aspect=0.5", "max_aspect")):
        refused = dalle("what-if", made, "--store", shared, "--set", wrong)
        assert (refused.code, words_ in refused.error) == (2, True)
    nothing = dalle("what-if", pairs, "--json", *given, "--set", "curate.min_caption_chars=900")
    chars = {m["threshold"]: m["gained"] for m in nothing.payload["moves"] if m["knob"] == "min_caption_chars"}
    assert chars[900] == 0 and "no pair" not in nothing.err and "every threshold off" in nothing.err
    out = tmp_path / "out"
    said = dalle("curate", pairs, "--out", str(out), *given)
    assert said.code == 0, said.err
    assert "reused" in said.out, "the report is part of the artifact"
    assert "What was not checked" in (out / "curation.html").read_text()
    assert (out / "curation" / "kept.png").read_bytes().startswith(b"\x89PNG")
