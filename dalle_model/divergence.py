"""When a training run is lost: told from its curve alone, so a resumed run decides as the undisturbed one."""

from collections.abc import Mapping, Sequence

Curve = Sequence[Mapping[str, float]]


def suspicious_points(curve: Curve, factor: float) -> int:
    """How many of the last points in a row have a loss that exploded; 0 when ``factor`` is 0.

    Exploded: above ``factor`` times the best loss so far, and more than half of what was gained since the first point
    is lost. The second condition keeps quiet where the loss is near zero and a small step up is a large multiple.
    """
    if not factor or len(curve) < 2:
        return 0
    first = best = curve[0]["loss"]
    count = 0
    for point in curve[1:]:
        loss = point["loss"]
        limit = max(best + (factor - 1) * abs(best), best + (first - best) / 2)
        count = count + 1 if loss > limit else 0
        best = min(best, loss)
    return count


def diagnosis(curve: Curve, *, lr: float, warmup_steps: int, clip_norm: float, saved_step: int) -> str:
    """What happened, in words: the best point, the last one, the gradient, what to change, what is kept.

    saved_step: of the newest checkpoint, 0 = none.
    """
    best = min(curve, key=lambda p: p["loss"])
    last = curve[-1]
    usual = sorted(p["grad_norm"] for p in curve)[len(curve) // 2]
    grew = last["grad_norm"] > 3 * usual
    cause = "its gradients grew" if grew else "its gradients did not grow, so the step size is the first suspect"
    remedies = [f"lower lr {lr:g}", f"raise warmup_steps {warmup_steps}"]
    remedies += ["set clip_norm 1"] if not clip_norm else []
    kept = f"the checkpoint at step {saved_step} is kept" if saved_step else "no checkpoint was made yet"
    return (
        f"the loss is {last['loss']:.4g} at step {int(last['step'])} after {best['loss']:.4g} at step "
        f"{int(best['step'])}; the gradient norm is {last['grad_norm']:.3g} (usually {usual:.3g}): {cause}; "
        f"{' or '.join(remedies)}; {kept}"
    )
