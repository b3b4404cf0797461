"""``dalle forget``: withdraw pairs, and say what was made with them."""

from pathlib import PurePosixPath
from shlex import quote
from typing import Any

from tasks.forget import Forgotten, Touched, forget
from tasks.settings import Settings
from tasks.step import open_store

_IDS_SHOWN = 1000


def run(settings: Settings, what: str, note: str, dry_run: bool) -> tuple[dict[str, Any], list[str]]:
    """Withdraw and mark; with ``dry_run`` only look."""
    found = forget(open_store(settings), what, settings, note=note, dry_run=dry_run)
    payload = {
        "rule": {"kind": found.rule.kind, "value": found.rule.value, "number": found.rule.number},
        "new": found.new,
        "dry_run": dry_run,
        "pairs": found.pairs,
        "others": found.others,
        "unreadable": found.unreadable,
        "ids": found.ids[:_IDS_SHOWN],
        "artifacts": [touched.entry() for touched in found.touched],
    }
    return payload, _lines(found, dry_run)


def _lines(found: Forgotten, dry_run: bool) -> list[str]:
    verb = "would withdraw" if dry_run else "withdrawn" if found.new else "already withdrawn"
    lines = [f"{verb}: {found.rule.kind} {found.rule.value}, {found.pairs:,} pairs in this store"]
    for touched in found.touched:
        lines += _of(touched)
    for key, count in found.others.items():
        lines.append(
            f"{count:,} more pairs have other captions of that picture: `dalle forget {quote(f'key:{key}')}` takes them, too"
        )
    if not found.touched:
        lines.append("nothing in this store was made with them")
    for fingerprint, why in found.unreadable.items():
        lines.append(
            f"whether {fingerprint[:12]} was made with them is not known: {why}; then repeat this command, which marks it, too"
        )
    named = [(name, t) for t in found.touched for name in t.names]
    for name, touched in named:
        lines.append(
            f"the name {name} points at {touched.manifest.kind} {touched.manifest.fingerprint[:12]}, made with them: "
            f"run the chain again, then `dalle promote REF --as {name}`"
        )
    if not dry_run and found.touched:
        lines += [
            f"{len(found.touched)} artifacts are marked; nothing is deleted. The next run leaves these pairs out and makes",
            "everything after `curate` anew; `dalle sweep --forgotten` then removes what was made with them.",
        ]
    return lines


def _of(touched: Touched) -> list[str]:
    m = touched.manifest
    splits = ", ".join(f"{count} {split}" for split, count in sorted(touched.splits.items()))
    holds = f"{touched.pairs:,} pairs" + (f" ({splits})" if splits else "") if touched.pairs else "made from the above"
    lines = [f"  {m.step:14} {m.fingerprint[:12]}  {holds}"]
    if touched.pairs or m.kind == "generations":
        lines += [f"      {o.role:12} {o.rows:8,} rows  {PurePosixPath(o.key).name[:16]}" for o in touched.objects[:20]]
        if len(touched.objects) > 20:
            lines.append(f"      and {len(touched.objects) - 20} more objects; --json names all")
    return lines
