"""Figures of drawings: recognisability, distances between sets, variety, copies, agreement with words, truth of scenes.

Each function adds its figures, with interval and record, to ``Findings``. Published measures keep their names, with
the features they stand on; what is this project's own says so in its record.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dalle_model.distances import (
    Neighbourhood,
    frechet,
    mean_distance,
    sliced_wasserstein,
)
from dalle_model.dual_encoder import Judge, one_word_apart, preference
from dalle_model.features import Features, RandomFeatures, ThumbnailFeatures
from dalle_model.images import to_float
from dalle_model.intervals import GROUPS, distance_interval, left_out, set_interval
from dalle_model.metrics import code_usage, psnr, ssim
from dalle_model.ngrams import grid_runs_known, word_runs_known
from dalle_model.published import ClipJudge, clip_scores, cmmd
from dalle_model.scene_checks import CHECKS_VERSION, verdicts
from dalle_model.scenes import parse_caption
from tasks.copies import Nearest
from tasks.drawn import Drawn, Repeats
from tasks.findings import Findings
from tasks.pictures import spread

UInt8 = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]

_MOST = 2000  # pictures compared each with each; more are thinned out evenly
_NEIGHBOURS = 5
_RUN = 8  # image tokens: an eighth of the smallest pictures
_WORDS = 4
_LEAST = 3  # pictures of which one can be left out
_OWN = "own: "
_SAME_CAPTIONS = "true pictures of the same captions"
_JACKKNIFE = f"95 % jackknife over {GROUPS} groups of pictures (Busing et al. 1999), dealt by Philox seed 0"
_OF_DISTRIBUTIONS = f"{_JACKKNIFE}; the figure is less its jackknife bias"
_AT_THIS_NUMBER = f"{_JACKKNIFE}; of what is expected at this number of pictures"


def drawings(into: Findings, group: Drawn, suffix: str = "") -> None:
    """Recognisability and distance of drawings to their captions' own pictures, and what the tokenizer alone allows."""
    rule = "share whose nearest reference picture, by mean squared error at half resolution, is its caption's own"
    into.mean(f"recognisability{suffix}", group.ids, group.hit, _OWN + rule)
    into.mean(
        f"recognisability_of_reconstructions{suffix}",
        group.ids,
        group.rebuilt_hit,
        _OWN + "the same of true pictures sent through the tokenizer",
    )
    into.mean(
        f"distance_to_own_picture{suffix}",
        group.ids,
        group.distance,
        "mean squared error to the caption's own picture, colours from 0 to 1",
        reference=_SAME_CAPTIONS,
    )
    truth, rebuilt = to_float(group.truth), to_float(group.rebuilt)
    for name, values, measure in (
        ("reconstruction_psnr", psnr(rebuilt, truth), "peak signal to noise ratio in dB"),
        ("reconstruction_ssim", ssim(rebuilt, truth), "structural similarity (Wang et al. 2004), Gaussian window"),
    ):
        into.mean(f"{name}{suffix}", group.ids, values.double().numpy(), measure, reference=_SAME_CAPTIONS)


def distributions(
    into: Findings,
    made: UInt8,
    truth: UInt8,
    rebuilt: UInt8 | None,
    others: Sequence[tuple[str, Features]],
    reference: str = _SAME_CAPTIONS,
    random: Features | None = None,
) -> None:
    """How far the set of drawings lies from a set of true pictures, both uint8 [n, H, W, 3].

    rebuilt: the true pictures sent through the tokenizer; None: the sets do not belong together picture by picture.
    random: the untrained network, or a stand-in that also keeps the time. others: more features, each with the end of
    its figures' names. Sets too small for a measure go without it.
    """
    n = len(made)
    if n < _LEAST:
        return
    random = random or RandomFeatures()
    about: dict[str, Any] = {"n": n, "reference": reference, "interval": _OF_DISTRIBUTIONS}
    a, b = (random.of(to_float(x)) for x in (truth, made))
    sets = [("frechet_random", b)]
    if rebuilt is not None:
        sets.append(("frechet_random_of_reconstructions", random.of(to_float(rebuilt))))
    for name, set_b in sets:
        value = distance_interval(frechet, a, set_b)
        into.add(name, *value, "squared Frechet distance (Dowson and Landau 1982)", on=random, **about)
    for name, features in (("random", random), *others):
        rows_a, rows_b = (features.of(to_float(x)) for x in (truth, made)) if features is not random else (a, b)
        value = distance_interval(sliced_wasserstein, rows_a, rows_b, root=True)
        measure = "sliced 2-Wasserstein distance (Bonneel et al. 2015), 128 directions"
        into.add(f"sliced_wasserstein_{name}", *value, measure, on=features, **about)
    neighbours(into, a, b, random, reference)


def packaged(into: Findings, made: UInt8, truth: UInt8, network: Features, reference: str = _SAME_CAPTIONS) -> None:
    """The same figures on a network trained on photographs; both uint8 [n, H, W, 3]."""
    n = len(made)
    if n < _LEAST:
        return
    about: dict[str, Any] = {"n": n, "reference": reference, "interval": _OF_DISTRIBUTIONS, "on": network}
    a, b = (network.of(to_float(x)) for x in (truth, made))
    into.add("frechet_efficientnet", *distance_interval(frechet, a, b), "squared Frechet distance; no FID", **about)
    far = distance_interval(sliced_wasserstein, a, b, root=True)
    into.add("sliced_wasserstein_efficientnet", *far, "sliced 2-Wasserstein distance, 128 directions", **about)
    neighbours(into, a, b, network, reference, "_efficientnet")


def neighbours(
    into: Findings, truth: FloatArray, made: FloatArray, on: Features, reference: str, suffix: str = ""
) -> None:
    """Do drawings lie among true pictures, and these among drawings? Rows float64 [n, d] of ``on``."""
    rows = spread(len(truth), _MOST)
    if len(rows) <= _NEIGHBOURS + _NEIGHBOURS // 2:  # some are left out to see how sure it is
        return
    near = Neighbourhood(truth[rows], made[rows], _NEIGHBOURS)
    units = [f"{row:06d}" for row in rows]
    for name, source in (
        ("precision", "Kynkaanniemi et al. 2019"),
        ("recall", "Kynkaanniemi et al. 2019"),
        ("density", "Naeem et al. 2020"),
        ("coverage", "Naeem et al. 2020"),
    ):
        about = {"reference": reference, "interval": f"{_AT_THIS_NUMBER}; where all have 0 or all 1, Wilson's"}
        measure = f"{name} ({source}), {_NEIGHBOURS} neighbours"
        bounds = near.interval(name)
        into.bounded_mean(f"{name}{suffix}", units, near.values(name), bounds, measure, on=on, **about)


def variety(into: Findings, repeats: Repeats, made: UInt8) -> None:
    """Distance between drawings of one caption over that between drawings of different ones.

    made uint8 [n, H, W, 3], one of each caption.
    """
    if len(repeats.made) < 2 or len(made) < 2:
        return
    thumbnails = ThumbnailFeatures()
    across = mean_distance(thumbnails.of(to_float(made[spread(len(made), _MOST)])))
    rows = thumbnails.of(to_float(repeats.made))
    if across <= 0:
        into.leave_out("variety: all drawings are one picture")
        return
    each = [mean_distance(rows[repeats.groups == g]) / across for g in np.unique(repeats.groups)]
    into.mean(
        "variety",
        [f"{g:06d}" for g in np.unique(repeats.groups)],
        each,
        _OWN + "distance between drawings of one caption over that between drawings of different captions",
        on=thumbnails,
        reference="drawings of the same captions",
    )


def code_health(into: Findings, group: Drawn, vocab_size: int) -> None:
    """How many codes the drawings use, beside their true pictures: a model that draws one thing uses few."""
    for name, ids in (("drawings", group.tokens), ("originals", group.true_tokens)):
        codes = torch.from_numpy(ids.astype(np.int64))
        if len(codes) < _LEAST:
            return
        value = code_usage(codes, vocab_size)[0]
        left = left_out(len(codes))
        without = [code_usage(codes[np.delete(np.arange(len(codes)), rows)], vocab_size)[0] for rows in left]
        into.add(
            f"code_perplexity_of_{name}",
            value,
            set_interval(value, without, [len(rows) for rows in left], top=float(vocab_size)),
            "exp of the entropy of the code histogram",
            n=len(codes),
            reference="none",
            interval=_AT_THIS_NUMBER,
        )


def copies(into: Findings, group: Drawn, found: Nearest, features: Features, suffix: str = "") -> None:
    """Share of drawings that are copies, and how far from the nearest training picture drawings are."""
    about = {
        "features": f"image tokens and {features.name}",
        "features_sha256": features.digest,
        "reference": "all reference training pictures",
    }
    into.mean(
        f"copied{suffix}", group.ids, found.copied, _OWN + "share within a threshold of a training picture", **about
    )
    into.mean(
        f"nearest_training_tokens{suffix}",
        group.ids,
        found.token_distance,
        _OWN + "share of the tokens that differ from the nearest training picture's",
        **about,
    )


def runs_copied(into: Findings, group: Drawn, training: npt.NDArray[np.uint16], suffix: str = "") -> None:
    """Are drawings patched together from pieces of training pictures? training uint16 [m, N], their image tokens.

    Beside them the true pictures of the same captions; where these are held out, they tell what copies nothing.
    """
    if group.tokens.shape[1] < _RUN:
        return
    for name, tokens in (("", group.tokens), ("_of_originals", group.true_tokens)):
        into.mean(
            f"token_runs_copied{name}{suffix}",
            group.ids,
            grid_runs_known(tokens, training, _RUN),
            f"{_OWN}share of runs of {_RUN} image tokens that a training picture has at the same place",
            features="image tokens",
            reference="all reference training pictures",
        )


def captions_written(
    into: Findings, written: Sequence[str], group: Drawn, known: Sequence[str], on: str, suffix: str = ""
) -> None:
    """Does the model write captions of its own? written: its captions of the group's true pictures; known: training ones."""
    measure = f"{_OWN}share of runs of {_WORDS} words that stand in a training caption (after McCoy et al. 2023)"
    about = {"features": "words", "features_sha256": on, "reference": "all reference training captions"}
    for name, texts in (("", written), ("_of_originals", group.captions)):
        shares = word_runs_known(texts, known, _WORDS)
        rows = [row for row, share in enumerate(shares) if share is not None]
        units = [group.ids[row] for row in rows]
        into.mean(
            f"caption_runs_copied{name}{suffix}",
            units,
            np.array([shares[row] for row in rows], np.float64),
            measure,
            **about,
        )
    whole = set(known)
    same = "share of written captions that are a training caption, word for word"
    into.mean(f"captions_copied{suffix}", group.ids, [text in whole for text in written], _OWN + same, **about)


def agreement(into: Findings, judge: Judge, group: Drawn, known: Sequence[str], suffix: str = "") -> None:
    """Do drawings fit their captions better than other captions, by the dual encoder?

    known: training captions, among which those one word apart are sought.
    """
    about = {"features": judge.name, "features_sha256": judge.digest, "reference": "the other captions of the group"}
    captions = judge.captions(group.captions)
    made, truth = judge.pictures(group.made), judge.pictures(group.truth)
    if others := _others(group.captions, -1):
        measure = (
            _OWN + "share of the other captions that fit a picture less than its own; chance is 0.5; no CLIP score"
        )
        for name, images in (("", made), ("_of_originals", truth), ("_of_wrong_captions", made[others])):
            values = preference(images, captions, group.captions)
            into.mean(f"agreement{name}{suffix}", group.ids, values, measure, **about)
    else:
        into.leave_out(f"agreement{suffix}: there is no second caption to tell it from")
    near = one_word_apart(group.captions, known)
    rows = [i for i, others in enumerate(near) if others]
    if not rows:
        return
    rivals = sorted({caption for i in rows for caption in near[i]})
    scores = judge.captions(rivals)
    place = {caption: number for number, caption in enumerate(rivals)}
    for name, images in (("", made), ("_of_originals", truth)):
        own = (images * captions).sum(1)
        won = [float((images[i] @ scores[[place[c] for c in near[i]]].T < own[i]).mean()) for i in rows]
        into.mean(
            f"attribute_agreement{name}{suffix}",
            [group.ids[i] for i in rows],
            won,
            _OWN + "the same against training captions that differ in exactly one word",
            **about,
        )


def published(
    into: Findings, group: Drawn, inception: Features | None, clip: ClipJudge | None, suffix: str = ""
) -> None:
    """FID, CMMD and CLIPScore, for weights that were supplied; plain, as published, so that n must be equal to compare."""
    n = len(group.ids)
    pictures = [to_float(x) for x in (group.truth, group.made)]
    about: dict[str, Any] = {"n": n, "reference": _SAME_CAPTIONS}
    about["interval"] = _AT_THIS_NUMBER
    for name, features, distance, measure in (
        ("fid_clean", inception, frechet, "FID (Heusel et al. 2017), resized as clean-fid does"),
        ("cmmd", clip, cmmd, "CMMD (Jayasumana et al. 2024), sigma 10, times 1000"),
    ):
        if features is not None and n >= _LEAST:
            a, b = (features.of(x) for x in pictures)
            value = distance_interval(distance, a, b, corrected=False)
            into.add(f"{name}{suffix}", *value, measure, on=features, **about)
    if clip is not None:
        scores = clip_scores(clip.of(pictures[1]), clip.captions(group.captions))
        into.mean(
            f"clip_score{suffix}", group.ids, scores, "CLIPScore (Hessel et al. 2021)", on=clip, reference="captions"
        )


def scenes(into: Findings, group: Drawn, suffix: str = "") -> None:
    """For captions of scenes, the share of drawings that meet each attribute; nothing when there are none.

    ``scene_all_chance``: the same drawings beside the next other caption. ``suffix`` names the split.
    """
    rows = [i for i, caption in enumerate(group.captions) if parse_caption(caption)]
    if not rows:
        return
    said, ids = [group.captions[i] for i in rows], [group.ids[i] for i in rows]
    about = {"reference": "what the caption says, measured in the pixels", "features": f"scene checks {CHECKS_VERSION}"}
    met: dict[str, dict[str, bool]] = {}
    for number, unit in enumerate(ids):
        for name, value in (verdicts(said[number], group.made[rows[number]]) or {}).items():
            met.setdefault(name, {})[unit] = value
    for name, each in met.items():
        measure = _OWN + f"share of drawings that meet what the caption says of {name} (GenEval's question)"
        into.mean(f"scene_{name}{suffix}", list(each), list(each.values()), measure, **about)
    controls = [("of_reconstructions", said, group.rebuilt, "of true pictures sent through the tokenizer")]
    if others := _others(said, 1):
        wrong = [said[i] for i in others]
        controls.append(
            ("chance", wrong, group.made, "of drawings beside the caption of the next one that has another")
        )
    else:
        into.leave_out(f"scene_all_chance{suffix}: there is no second caption")
    for name, captions, pictures, words in controls:
        all_met = [(verdicts(c, pictures[i]) or {}).get("all", False) for c, i in zip(captions, rows, strict=True)]
        into.mean(f"scene_all_{name}{suffix}", ids, all_met, f"{_OWN}share that meets all, {words}", **about)


def _others(captions: Sequence[str], step: int) -> list[int]:
    """For each caption the row of the next one that is another, going round by ``step``; none if all are the same."""
    n = len(captions)
    out = []
    for i in range(n):
        rows = ((i + step * k) % n for k in range(1, n))
        other = next((row for row in rows if captions[row] != captions[i]), None)
        if other is None:
            return []
        out.append(other)
    return out
