"""``dalle compress``: are a model's pictures as good with smaller weights? The answer is kept under a name of the store."""

from pathlib import Path

from dalle_model.config import EvaluateConfig
from dalle_model.errors import UsageError
from flows import views
from flows.comparison import evaluation_of
from flows.inspection import Shown
from tasks.comparison import compare, comparison_page
from tasks.compression import decide
from tasks.settings import Settings
from tasks.step import open_store

_KINDS = ("int8", "half")


def compress(settings: Settings, model: str, config: EvaluateConfig, kind: str, margin: float, out: Path) -> Shown:
    """Draw the evaluation's captions with full and with smaller weights, compare them in pairs, and record the decision.

    The name ``KIND-<first digits of the model>`` then is that of the evaluation with smaller weights, and its note the
    decision. UsageError when ``kind`` is none of them or ``model`` is no model.
    """
    if kind not in _KINDS:
        raise UsageError(f"--weights is {kind!r}; give {' or '.join(_KINDS)}")
    views.prepare_folder(out)
    store = open_store(settings)
    subject = store.resolve(model)
    if subject.kind != "model":
        raise UsageError(f"{model!r} is of kind {subject.kind}; give a model: `dalle ls --kind model` shows those")
    evaluations = [
        evaluation_of(
            settings,
            subject,
            config.model_copy(update={"sampler": config.sampler.model_copy(update={"weights": weights})}),
        )
        for weights in ("full", kind)
    ]
    told = compare(store, *evaluations)
    decision = decide(told, kind, margin)
    name = f"{kind}-{subject.fingerprint[:12]}"
    store.set_ref(name, evaluations[1], note=decision.sentence[:500])
    page = views.write_whole(out / "comparison.html", comparison_page(store, told, *evaluations))
    use = f"dalle generate PROMPT... --model {subject.fingerprint[:12]} --set generate.weights={kind}"
    payload = {
        **decision.document(),
        "model": subject.fingerprint,
        "name": name,
        "comparison": told.document(),
        "page": str(page.absolute()),
        "use": use if decision.accepted else "",
    }
    lines = [decision.sentence, f"kept as {name}", f"page: {page.absolute()}"]
    return payload, [*lines, *([f"draw with it: {use}"] if decision.accepted else [])]
