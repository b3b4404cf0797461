"""URL lists: what is fetched, what is not and why, and that no list leads where nobody should go."""

import asyncio
import csv
import gzip
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.bad_images import encoded, photo
from support.data_steps import Data
from support.web_sites import Page, Site, site

from dalle_model.config import FetchConfig, IngestConfig
from dalle_model.decoding import Reason, Refused
from dalle_model.errors import SourceError, UsageError
from dalle_model.sources.addresses import AddressPolicy
from dalle_model.sources.captions import MAX_CAPTIONS
from dalle_model.sources.failures import FAILURES
from dalle_model.sources.fetch_failures import Failed
from dalle_model.sources.fetching import Fetched, Fetcher, FetchSettings
from dalle_model.sources.hosts import Pace
from dalle_model.sources.metadata import MAX_LINE_BYTES
from dalle_model.sources.permissions import SiteRules, TdmRules, header_reserves, tag_refuses, training_preference
from dalle_model.sources.url_list import UrlList

PNG = encoded(photo(40, 30), "PNG")
LOOPBACK = AddressPolicy.parse("127.0.0.1")
FAST = FetchSettings(per_host_per_s=1000, timeout_s=60, retries=0, addresses=LOOPBACK)


def fetched(urls: list[str], settings: FetchSettings = FAST) -> list[Fetched | Refused]:
    with Fetcher(settings) as fetcher:
        found = list(fetcher.map(enumerate(urls)))
    assert [number for number, _ in found] == list(range(len(urls)))
    return [result for _, result in found]


def reasons(results: list[Fetched | Refused]) -> list[str]:
    return [result.reason.value if isinstance(result, Refused) else "fetched" for result in results]


def config_of(source: Path, **changes: Any) -> IngestConfig:
    fetch = FetchConfig(**{"allow_addresses": "127.0.0.1", "per_host_per_s": 1000, "retries": 0, **changes})
    return IngestConfig(source=f"urls:{source}", image_px=32, rows_per_shard=10, fetch=fetch)


def list_of(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(f"{url}\t{caption}\n" for url, caption in rows))
    return path


# ----------------------------------------------------------------------------------------------------- one fetch


def test_each_kind_of_answer_has_its_reason_and_class() -> None:
    pages = {
        "/ok.png": Page(PNG),
        "/404.png": Page(status=404),
        "/busy.png": Page(status=503),
        "/cut.png": Page(PNG, cut=True),
        "/announced.png": Page(b"", headers={"Content-Length": "999999999"}),
        "/endless.png": Page(b"x" * 300_000),
        "/moved.png": Page(status=302, headers={"Location": "/ok.png"}),
        "/round.png": Page(status=301, headers={"Location": "/round.png"}),
        "/to-file.png": Page(status=302, headers={"Location": "file:///etc/passwd"}),
    }
    with site(pages) as web:
        urls = [web.url + path for path in pages]
        settings = FetchSettings(
            per_host_per_s=1000, timeout_s=60, retries=0, max_bytes=200_000, addresses=LOOPBACK, contact="me@here"
        )
        results = fetched(urls, settings)
    assert dict(zip(pages, reasons(results), strict=True)) == {
        "/ok.png": "fetched",
        "/404.png": "http_status",
        "/busy.png": "server_busy",
        "/cut.png": "cut_off",
        "/announced.png": "too_many_bytes",
        "/endless.png": "too_many_bytes",
        "/moved.png": "fetched",
        "/round.png": "too_many_redirects",
        "/to-file.png": "bad_url",
    }
    assert web.asked.count("/round.png") == 4, "three redirects are followed"
    assert web.asked.count("/robots.txt") == 1, "a site is asked for its rules once"
    (agent,) = web.agents
    assert agent.startswith("dalle-prefect/")
    assert "me@here" in agent
    classes = {FAILURES[r.reason] for r in results if isinstance(r, Refused)}
    assert classes == {"transient", "permanent"}


@pytest.mark.parametrize("piece", [1000, 1001, 60_000])
def test_the_score_of_an_endless_body_does_not_depend_on_how_it_comes(piece: int) -> None:
    """It stands in the ledger, so the manifest was another at every run."""

    async def pieces(size: int) -> AsyncIterator[bytes]:
        while True:
            yield b"x" * piece

    response: Any = SimpleNamespace(content_length=None, content=SimpleNamespace(iter_chunked=pieces))
    with pytest.raises(Failed) as failed:
        asyncio.run(Fetcher(FetchSettings(max_bytes=20_000))._body(response, 0))
    assert failed.value.refused == Refused(Reason.TOO_MANY_BYTES, "more than 20000 bytes were sent", 20_001)


def test_what_may_pass_is_tried_again_and_the_rest_is_not() -> None:
    with site({"/a": lambda n: Page(PNG) if n else Page(status=503), "/b": Page(status=410)}) as web:
        settings = FetchSettings(per_host_per_s=1000, retries=1, addresses=LOOPBACK)
        assert reasons(fetched([web.url + "/a", web.url + "/b"], settings)) == ["fetched", "http_status"]
        assert (web.asked.count("/a"), web.asked.count("/b")) == (2, 1)


def test_an_answer_that_does_not_come_in_time_is_one_that_may_pass() -> None:
    settings = FetchSettings(per_host_per_s=1000, timeout_s=0.3, retries=0, obey_opt_out=False, addresses=LOOPBACK)
    with site({"/slow.png": Page(PNG, slow_s=3)}) as web:
        (result,) = fetched([web.url + "/slow.png"], settings)
    assert isinstance(result, Refused)
    assert (result.reason.value, FAILURES[result.reason]) == ("fetch_timeout", "transient")


def test_a_host_is_not_asked_faster_than_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    next_turns, wait = [], Pace.wait

    async def noted(pace: Pace) -> None:
        await wait(pace)
        next_turns.append(pace._due)

    monkeypatch.setattr(Pace, "wait", noted)
    robots = Page(b"User-agent: *\nCrawl-delay: 0.2\n")
    with site({"/robots.txt": robots, "/a": Page(PNG)}) as web:
        fetched([web.url + "/a"] * 4)
    assert web.asked[-4:] == ["/a"] * 4
    assert next_turns[-1] - next_turns[-4] > 0.59


OPT_OUTS = {
    "/robots/a": (Page(PNG), "robots_txt"),
    "/noai": (Page(PNG, headers={"X-Robots-Tag": "noarchive, noai"}), "x_robots_tag"),
    "/noml": (Page(PNG, headers={"X-Robots-Tag": "NoML"}), "x_robots_tag"),
    "/other": (Page(PNG, headers={"X-Robots-Tag": "otherbot: noindex, noai"}), "fetched"),
    "/mine": (Page(PNG, headers={"X-Robots-Tag": "dalle-prefect: noimageai"}), "x_robots_tag"),
    "/tdm": (Page(PNG, headers={"TDM-Reservation": "1"}), "tdm_reserved"),
    "/reserved/a": (Page(PNG), "tdm_reserved"),
    "/reserved/open": (Page(PNG, headers={"TDM-Reservation": "0"}), "fetched"),
    "/usage": (Page(PNG, headers={"Content-Usage": "train-ai=n"}), "tdm_reserved"),
    "/signal": (Page(PNG, headers={"Content-Signal": "search=yes, ai-train=yes"}), "fetched"),
    "/untrained/a": (Page(PNG), "tdm_reserved"),
    "/plain": (Page(PNG), "fetched"),
}


def opted_out() -> dict[str, Any]:
    rules: list[dict[str, Any]] = [{"location": "/reserved/", "tdm-reservation": 1}]
    return {
        "/robots.txt": Page(
            b"User-agent: dalle-prefect\nDisallow: /robots/\nContent-Usage: /untrained/ train-ai=n\n\nUser-agent: *\nDisallow: /\n"
        ),
        "/.well-known/tdmrep.json": Page(json.dumps(rules).encode()),
        **{path: page for path, (page, _) in OPT_OUTS.items()},
    }


def test_the_owner_of_a_site_is_obeyed_and_asked_before_the_picture() -> None:
    with site(opted_out()) as web:
        results = fetched([web.url + path for path in OPT_OUTS])
        assert reasons(results) == [reason for _, reason in OPT_OUTS.values()]
        assert "/robots/a" not in web.asked and "/untrained/a" not in web.asked
        assert {FAILURES[r.reason] for r in results if isinstance(r, Refused)} == {"refused"}
        plain = results[-1]
        assert isinstance(plain, Fetched)
        assert plain.decision == "robots.txt allows; no X-Robots-Tag against it; no TDM reservation"
        on_purpose = fetched(
            [web.url + path for path in OPT_OUTS],
            FetchSettings(per_host_per_s=1000, obey_opt_out=False, addresses=LOOPBACK),
        )
        assert {r.decision for r in on_purpose if isinstance(r, Fetched)} == {"opt-outs not asked for"}


def test_a_redirect_is_judged_by_the_rules_of_where_it_leads() -> None:
    with site({"/robots.txt": Page(b"User-agent: *\nDisallow: /private/"), "/private/a": Page(PNG)}) as there:
        away = {"/a": Page(status=302, headers={"Location": there.url + "/private/a"})}
        with site(away) as here:
            assert reasons(fetched([here.url + "/a"])) == ["robots_txt"]
        assert "/private/a" not in there.asked


def test_a_site_whose_rules_cannot_be_had_is_left_alone_for_now() -> None:
    with site({"/robots.txt": Page(status=500), "/a": Page(PNG)}) as web:
        (result,) = fetched([web.url + "/a"])
        assert isinstance(result, Refused)
        assert FAILURES[result.reason] == "transient"
        assert "/a" not in web.asked


@pytest.mark.parametrize(
    ("rules", "reserved"),
    [
        ([{"location": "/", "tdm-reservation": 1}], True),
        ([{"tdm-reservation": 1}], True),
        ([{"location": "/*.png$", "tdm-reservation": 1}], True),
        ([{"location": "/*.jpg$", "tdm-reservation": 1}], False),
        ([{"location": "/a/", "tdm-reservation": 0}, {"location": "/", "tdm-reservation": 1}], False),
        ([{"location": "/", "tdm-reservation": 1}, {"location": "/a/", "tdm-reservation": 0}], True),
        ([{"location": 7, "tdm-reservation": 1}, "x", None], False),
        ("rubbish", False),
        ([{"location": "/" + "*a" * 60 + "*c$", "tdm-reservation": 1}], False),  # for ever, as a regular expression
        ([{"location": "/a/b.png$", "tdm-reservation": 1}], True),
        ([{"location": "/a/b$", "tdm-reservation": 1}], False),
        ([{"location": "/a*b.p*ng", "tdm-reservation": 1}], True),
        ([{"location": "/*b.png*g$", "tdm-reservation": 1}], False),
        ([{"location": "*", "tdm-reservation": 1}], True),
    ],
)
def test_reservations_of_a_site(rules: Any, reserved: bool) -> None:
    found = TdmRules.parse(json.dumps(rules).encode())
    assert found.reserves("/a/b.png") is reserved
    found.reserves("/" + "a" * 200)


def test_rules_of_unknown_quality_do_no_harm() -> None:
    SiteRules.parse(b"\xff\xfe\0" * 1000 + b"Disallow /", b"[[[[").allows("http://x/")
    assert tag_refuses(["unavailable_after: 25 Jun 2010 15:00:00 PST, noindex", ""]) == "noindex"
    assert not tag_refuses(["max-snippet: 20", "nofollow", ":", ",,"])


DRAFT = """User-Agent: *
Allow: /
Disallow: /never/
Content-Usage: / train-ai=n
Content-Usage: /ai-ok/ train-ai=y

User-Agent: ExampleBot
Content-Usage: / train-ai=y
"""


@pytest.mark.parametrize(
    ("robots", "path", "line"),
    [
        (DRAFT, "/test", "Content-Usage: train-ai=n"), (DRAFT, "/ai-ok/test", ""),  # the example of the draft
        ("User-Agent: *\nContent-Signal: search=yes, ai-train=no\nAllow: /", "/a.png", "Content-Signal: ai-train=no"),
        ("content-signal : AI-TRAIN = NO # ours", "/", "content-signal: ai-train = no"),  # before any group
        ("User-agent: a\nUser-agent: Dalle-Prefect/1\nContent-Usage: /x\ttrain-ai=n\nUser-agent: *\nAllow: /", "/x/1", "Content-Usage: train-ai=n"),
        ("User-agent: dalle-prefect\nAllow: /\nUser-agent: *\nContent-Usage: / train-ai=n", "/", ""),
        ("User-agent: other\nContent-Signal: ai-train=no", "/", ""),
        ("User-agent: *\nContent-Signal: search=no, ai-input=no", "/", ""),
        ("User-agent: *\nContent-Usage: / train-ai=y\nContent-Usage: / train-ai=n", "/", "Content-Usage: train-ai=n"),
        ("User-agent: *\nContent-Usage: *.png train-ai=n", "/a/b.png", "Content-Usage: train-ai=n"),
        ("User-agent: *\nContent-Usage:\nContent-Signal: ai-train=maybe", "/", ""),
    ],
)  # fmt: skip
def test_usage_preferences_in_robots_txt_are_those_of_our_group_and_of_the_longest_path(
    robots: str, path: str, line: str
) -> None:
    assert SiteRules.parse(robots.encode(), None).usage.refuses(path) == line


def test_one_no_to_training_outweighs_every_yes_in_headers() -> None:
    assert training_preference(['train-ai="y"', "search=n, train-ai=n;x=1"]) == (False, "train-ai=n")
    assert training_preference(["ai-train=yes"]) == (True, "ai-train=yes")
    assert training_preference(["train-ais=n", "search=no"]) is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_robots_txt_is_read_as_editors_write_it(encoding: str) -> None:
    assert not SiteRules.parse("User-agent: *\nDisallow: /\n".encode(encoding), None).allows("http://x/a")


@pytest.mark.parametrize(
    ("value", "refuses"),
    [
        ("noai; noimageai", True), ("noarchive noai", True), ('"noai"', True), ("dalle-prefect/0.2: noai", True),
        ("dalle-prefect : noai", True), ("googlebot: noindex, dalle-prefect: noai", True), ("*: noindex", True),
        ("unavailable_after: Wed, 21 Oct 2099 07:28:00 GMT, noai", True),  # the hour names no crawler
        ("otherbot/1.0: noai", False), ("otherbot: all, noai", False), ("no_ai", False), ("max-image-preview: none", False),
    ],
)  # fmt: skip
def test_tags_are_understood_however_they_are_written(value: str, refuses: bool) -> None:
    assert bool(tag_refuses(["all", value])) is refuses


@pytest.mark.parametrize(
    ("values", "reserved"),
    [([], None), (["1"], True), (["0"], False), (["0", "1"], True), (["1, 0"], True), (['"1"'], True), (["1; x"], True),
     (["2"], None), (["true"], None), (["10"], None)],
)  # fmt: skip
def test_one_reservation_is_enough(values: list[str], reserved: bool | None) -> None:
    assert header_reserves(values) is reserved


# ----------------------------------------------------------------------------------------- where nobody should go

NOT_GLOBAL = [
    "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]", "0.0.0.0", "[::]", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "[fe80::1]", "[fd00:ec2::254]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "224.0.0.1", "255.255.255.255",
    "user@127.0.0.1", "127.0.0.1.",
]  # fmt: skip


class Recorder:
    """Stands in for name servers and sockets: names answer as told, and whoever connects is written down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: dict[str, list[list[str]]]) -> None:
        self.connected: list[str] = []
        self._answers = answers
        real = socket.getaddrinfo

        def lookup(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
            known = self._answers.get(host)
            if known is None:
                return real(host, port, *args, **kwargs)
            found = known.pop(0) if len(known) > 1 else known[0]
            family = {True: socket.AF_INET6, False: socket.AF_INET}
            return [(family[":" in a], socket.SOCK_STREAM, 6, "", (a, port, *[0, 0][: 2 * (":" in a)])) for a in found]

        def connect(sock: socket.socket, address: Any) -> None:
            self.connected.append(address[0])
            raise ConnectionRefusedError(111, "refused by the test")

        monkeypatch.setattr(socket, "getaddrinfo", lookup)
        monkeypatch.setattr("asyncio.selector_events.BaseSelectorEventLoop.sock_connect", self._never(connect))

    def _never(self, connect: Any) -> Any:
        async def sock_connect(_: Any, sock: socket.socket, address: Any) -> None:
            connect(sock, address)

        return sock_connect


def test_no_spelling_of_a_private_address_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "inside.example": [["10.0.0.7"]],
        "both.example": [["93.184.216.34", "127.0.0.1"]],
        "six.example": [["::ffff:192.168.0.1"]],
        "meta.example": [["169.254.169.254"]],
    }
    recorder = Recorder(monkeypatch, names)
    urls = [f"{scheme}://{host}/a.png" for host in [*NOT_GLOBAL, *names, "localhost"] for scheme in ("http", "https")]
    for obey in (True, False):
        results = fetched(urls, FetchSettings(per_host_per_s=1000, retries=0, obey_opt_out=obey))
        assert not recorder.connected
        assert set(reasons(results)) <= {"address_refused", "bad_url", "host_unknown"}
        assert reasons(results).count("address_refused") >= len(urls) - 4


def test_an_answer_that_changes_between_two_looks_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch, {"rebind.example": [["93.184.216.34"], ["127.0.0.1"]]})
    settings = FetchSettings(per_host_per_s=1000, retries=0)
    results = fetched([f"http://rebind.example:{port}/a.png" for port in (80, 81, 82)], settings)
    assert set(recorder.connected) <= {"93.184.216.34"}, "only what was judged is connected to"
    assert set(reasons(results)) <= {"unreachable", "address_refused"}


def test_a_redirect_inside_is_refused_like_a_link_inside() -> None:
    targets = ["http://[::1]:9/a", "http://169.254.169.254/latest/meta-data/", "http://0x7f000002/", "ftp://127.0.0.1/"]
    pages = {f"/{n}": Page(status=302, headers={"Location": target}) for n, target in enumerate(targets)}
    with site(pages) as web:
        assert reasons(fetched([web.url + path for path in pages])) == [*["address_refused"] * 3, "bad_url"]


def test_the_allow_list_names_addresses_and_nothing_else() -> None:
    policy = AddressPolicy.parse("127.0.0.1, 10.8.0.0/16")
    allowed = ["127.0.0.1", "10.8.3.4", "8.8.8.8", "::ffff:127.0.0.1"]
    assert [policy.permits(a) for a in allowed] == [True] * 4
    assert not any(policy.permits(a) for a in ("127.0.0.2", "10.9.0.1", "::1", "rubbish", ""))
    with pytest.raises(UsageError, match=r"allow_addresses: 'localhost' is no address"):
        AddressPolicy.parse("localhost")


# --------------------------------------------------------------------------------------------------------- lists


def write_lists(folder: Path) -> dict[str, Path]:
    """The same two rows in every form."""
    rows = [{"url": "http://x.example/1.png", "text": "one, two"}, {"url": "http://x.example/2.png", "text": "drei"}]
    upper = [{"URL": r["url"], "TEXT": r["text"], "similarity": 0.5} for r in rows]
    made = {
        "txt": folder / "a.txt", "csv": folder / "b.csv", "tsv": folder / "c.tsv", "cc": folder / "d.tsv",
        "jsonl": folder / "e.jsonl", "parquet": folder / "f.parquet",
    }  # fmt: skip
    made["txt"].write_text("".join(f"{r['url']} {r['text']}\n\n" for r in rows))
    for name, delimiter in (("csv", ","), ("tsv", "\t")):
        with made[name].open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "url"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    made["cc"].write_text("".join(f"{r['text']}\t{r['url']}\n" for r in rows))
    made["jsonl"].write_text("".join(json.dumps(r) + "\n" for r in rows))
    pq.write_table(pa.Table.from_pylist(upper), made["parquet"])
    for name, path in list(made.items()):
        made[f"{name}.gz"] = path.with_name(path.name + ".gz")
        made[f"{name}.gz"].write_bytes(gzip.compress(path.read_bytes()))
    return made


def test_every_form_of_a_list_has_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch, {"x.example": [["127.0.0.1"]]})
    for name, path in write_lists(tmp_path).items():
        source = UrlList(str(path), IngestConfig())
        rows = [(row.key, row.caption) for row in source.rows(0)]
        assert rows == [("http://x.example/1.png", "one, two"), ("http://x.example/2.png", "drei")], name
        assert [row.key for row in source.rows(1)] == ["http://x.example/2.png"], name
        assert [row.key for row in source.rows_of({1})] == ["http://x.example/2.png"], name
        assert source.identity() == UrlList(str(path), IngestConfig()).identity()
    assert not recorder.connected


def test_trouble_with_a_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"rubbish")
    with pytest.raises(SourceError, match="cannot be read"):
        UrlList(str(tmp_path / "a.parquet"), IngestConfig()).count()
    (tmp_path / "a.xlsx").write_bytes(b"rubbish")
    with pytest.raises(SourceError, match="is no list"):
        UrlList(str(tmp_path / "a.xlsx"), IngestConfig())


def test_a_row_without_a_caption_or_url_costs_no_request(tmp_path: Path) -> None:
    with site({"/1.png": Page(PNG)}) as web:
        path = tmp_path / "a.jsonl"
        lines: list[dict[str, Any]] = [{"url": web.url + "/1.png"}, {"url": 7, "text": "x"}, {"text": "no link"}]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{broken\n")
        found = [row.image for row in UrlList(str(path), config_of(path)).rows(0)]
        assert reasons(found) == ["no_caption", "bad_metadata", "bad_metadata", "bad_metadata"]  # type: ignore[arg-type]
        assert not web.asked


def test_several_captions_of_a_picture_are_as_many_rows_and_one_request(tmp_path: Path) -> None:
    captions: list[Any] = [["one", "two", 3], [], ["x"] * (MAX_CAPTIONS + 1), ["\0", "six"], [None, ""]]
    with site({f"/{n}.png": Page(PNG) for n in (0, 3)}) as web:
        rows = [{"url": f"{web.url}/{n}.png", "text": texts} for n, texts in enumerate(captions)]
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rows[0]["text"] = ["one", "two", ""]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        for name, third in (("a.jsonl", "caption_not_text"), ("a.parquet", "no_caption")):
            source = UrlList(str(tmp_path / name), config_of(tmp_path / name))
            found = list(source.rows(0))
            assert [row.caption for row in found][:2] == ["one", "two"]
            assert reasons([row.image for row in found]) == [  # type: ignore[list-item]
                "fetched", "fetched", third, "no_caption", "bad_metadata", "caption_not_text", "fetched",
                "no_caption", "no_caption",
            ], name  # fmt: skip
            asked = [path for path in web.asked if path.endswith(".png")]
            assert sorted(asked) == ["/0.png", "/3.png"], "once for all captions, and not for none"
            for start in (1, 3, 6):
                assert list(source.rows(start)) == found[start:]
            assert list(source.rows_of({1, 6})) == [found[1], found[6]]
            limited = config_of(tmp_path / name).model_copy(update={"limit": 2})
            assert list(UrlList(str(tmp_path / name), limited).rows(1)) == found[1:2]
            web.asked.clear()


@pytest.mark.parametrize("packed", [False, True])
def test_a_giant_cell_of_a_list_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    monkeypatch.setattr("dalle_model.sources.parquet_large.LARGE_CHUNK_BYTES", 1000)
    recorder = Recorder(monkeypatch, {})
    path = tmp_path / "a.parquet"
    giant = "x" * (MAX_LINE_BYTES + 1)
    table = {
        "url": ["http://127.0.0.2/1", giant, "http://x.example/3"],
        "text": ["one", "two", giant],
        "note": [giant, "", ""],
        "blob": [b"y" * 2000] * 3,
    }
    pq.write_table(pa.table(table), path, use_dictionary=False)
    if packed:
        path = tmp_path / "a.parquet.gz"
        path.write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    found = list(UrlList(str(path), config_of(path)).rows(0))
    assert [row.caption for row in found] == ["one", "two", ""]
    assert reasons([row.image for row in found])[1:] == ["bad_metadata", "caption_too_long"]  # type: ignore[list-item]
    assert [row.extra for row in found] == [{}, {"note": ""}, {"note": ""}]
    assert not recorder.connected


# ---------------------------------------------------------------------------------------------------- the whole step


def web_of(count: int, web: Site) -> list[tuple[str, str]]:
    for n in range(count):
        web.pages[f"/{n}.png"] = Page(encoded(photo(40, 30, seed=n), "PNG"))
    return [(f"{web.url}/{n}.png", f"picture {n}") for n in range(count)]


def test_what_was_decided_stands_in_the_ledger(tmp_path: Path) -> None:
    with site(opted_out() | {"/busy": Page(status=503)}) as web:
        paths = [*OPT_OUTS, "/busy", "/gone"]
        source = list_of(tmp_path / "a.tsv", [(web.url + path, f"picture {path}") for path in paths])
        data = Data(tmp_path)
        manifest = data.ingest(config_of(source))
    ledger = {row["key"].removeprefix(web.url): row for row in data.rows(manifest, "ledger")}
    assert (
        len(ledger)
        == manifest.stats["rows_in"]
        == manifest.stats["kept"] + manifest.stats["rejected"]
        == len(OPT_OUTS) + 2
    )
    assert ledger["/plain"]["kept"]
    assert ledger["/plain"]["detail"] == "robots.txt allows; no X-Robots-Tag against it; no TDM reservation"
    assert [ledger[path]["rule"] for path in ("/noai", "/busy", "/gone")] == [
        "fetch.refused", "fetch.transient", "fetch.permanent",
    ]  # fmt: skip
    assert ledger["/busy"]["score"] == 503
    decided = Counter("fetched" if reason == "fetched" else "refused" for _, reason in OPT_OUTS.values())
    assert manifest.stats["fetches"] == {**decided, "permanent": 1, "transient": 1}
    assert str(tmp_path) not in json.dumps(manifest.model_dump(mode="json", exclude={"facts"}))


def test_the_same_list_gives_the_same_manifest_however_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.job import Job, StopRequested

    with site({}) as web:
        source = list_of(tmp_path / "a.tsv", web_of(45, web))
        web.pages["/7.png"] = Page(status=404)
        web.pages["/3.png"] = Page(web.pages["/3.png"].body, slow_s=0.3)  # type: ignore[union-attr]
        one = Data(tmp_path / "one", workers=1).ingest(config_of(source, concurrency=1))
        before = web.asked.count("/1.png")
        commit, commits = Job.commit_part, []

        def stopping(job: Job, n: int, part: object) -> None:
            commit(job, n, part)  # type: ignore[arg-type]
            commits.append(n)
            if len(commits) in (1, 3):
                raise StopRequested

        monkeypatch.setattr(Job, "commit_part", stopping)
        data = Data(tmp_path / "many", workers=3)
        for _ in range(2):
            with pytest.raises(StopRequested):
                data.ingest(config_of(source, concurrency=16, contact="x"))
        assert data.ingest(config_of(source)).sha256 == one.sha256
        assert web.asked.count("/1.png") == before + 1, "what is in a receipt is not asked for again"


def test_the_limit_is_not_passed_by_looking_ahead(tmp_path: Path) -> None:
    with site({}) as web:
        source = list_of(tmp_path / "a.tsv", web_of(40, web))
        manifest = Data(tmp_path).ingest(config_of(source).model_copy(update={"limit": 12}))
        assert manifest.rows == len([path for path in web.asked if path.endswith(".png")]) == 12


def test_a_list_whose_fetches_fail_stops_the_step_and_names_the_cause(tmp_path: Path) -> None:
    with site({}) as web:
        rows = web_of(8, web) + [(f"{web.url}/none/{n}", f"gone {n}") for n in range(90)]
        source = list_of(tmp_path / "a.tsv", rows)
        data = Data(tmp_path)
        with pytest.raises(
            SourceError,
            match=r"only \d of the last \d\d fetches succeeded, most failed \(\d+\) as http_status; the last is http",
        ):
            data.ingest(config_of(source, concurrency=2))
        assert len([path for path in web.asked if path.startswith("/none")]) < 90, "it stops before the end"
        allowed = config_of(source, min_success=0.0).model_copy(update={"max_rejected_share": 0.95})
        assert data.ingest(allowed).rows == 8
