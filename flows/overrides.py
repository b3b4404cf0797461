"""``--set section.key=value``: one knob of a config, validated, with its range in the message."""

import difflib
import json
from collections.abc import Iterable
from typing import Any, get_args

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from dalle_model.config import FitConfig, PipelineConfig
from dalle_model.errors import UsageError

# The sections of the fit stage are named directly: train.steps, model.dim, sampler.guidance.
_WITHIN_FIT = tuple(FitConfig.model_fields)


def allowed_range(field: FieldInfo) -> str:
    """What a field admits, in words: bounds, choices or type."""
    signs = (
        (annotated_types.Ge, "ge", ">="),
        (annotated_types.Gt, "gt", ">"),
        (annotated_types.Le, "le", "<="),
        (annotated_types.Lt, "lt", "<"),
    )
    parts = [
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for kind, name, sign in signs
        if isinstance(rule, kind)
    ]
    parts += [
        f"a multiple of {rule.multiple_of}" for rule in field.metadata if isinstance(rule, annotated_types.MultipleOf)
    ]
    parts += [f"matching {rule.pattern}" for rule in field.metadata if getattr(rule, "pattern", None)]
    annotation = _value_type(field)
    choices = [c for c in get_args(annotation) if isinstance(c, str)]
    if choices:
        return "one of " + ", ".join(choices)
    name = getattr(annotation, "__name__", str(annotation)) if not get_args(annotation) else str(annotation)
    return f"{name} " + " and ".join(parts) if parts else name


def _value_type(field: FieldInfo) -> Any:
    """The type of a field's values; None, where a field may be left out, is no value that one sets."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and type(None) in get_args(field.annotation) else field.annotation


def _locate(path: str) -> tuple[list[str], FieldInfo]:
    """The full path of a key, and its field. A key that a section lacks is looked for in its ``optim``."""
    parts = path.split(".")
    if parts[0] in _WITHIN_FIT:
        parts.insert(0, "fit")
    model: type[BaseModel] = PipelineConfig
    full: list[str] = []
    for i, part in enumerate(parts):
        fields = model.model_fields
        if part not in fields and "optim" in fields and part in _model_of(fields["optim"]).model_fields:
            full.append("optim")
            model = _model_of(fields["optim"])
            fields = model.model_fields
        if part not in fields:
            known = [
                *fields,
                *(_WITHIN_FIT if model is PipelineConfig else ()),
                *(_model_of(fields["optim"]).model_fields if "optim" in fields else ()),
            ]
            near = difflib.get_close_matches(part, known, n=3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(f"unknown key {part!r} in {path!r}; {hint}known here: {', '.join(known)}")
        full.append(part)
        field = fields[part]
        if i == len(parts) - 1:
            return full, field
        model = _model_of(field)
        if not model.model_fields:
            raise UsageError(f"{path!r}: {part} is a value, not a section; set it as {'.'.join(parts[: i + 1])}=VALUE")
    raise UsageError(f"{path!r} names no key; write section.key=value, e.g. train.steps=200")


def _model_of(field: FieldInfo) -> type[BaseModel]:
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return BaseModel


def _value_of(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _set(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        if tree.get(part) is None:
            tree[part] = {}
        tree = tree[part]
    tree[path[-1]] = value


def override(config: PipelineConfig, assignments: Iterable[str]) -> PipelineConfig:
    """A config with each ``section.key=value`` applied.

    Values are read as JSON, else as text. Raises UsageError naming the key, the value, and what the key admits.
    """
    tree = config.model_dump(mode="json")
    located: dict[tuple[str, ...], tuple[str, FieldInfo]] = {}
    for assignment in assignments:
        path, sign, text = assignment.partition("=")
        if not sign:
            raise UsageError(f"--set {assignment!r} has no '='; write section.key=value, e.g. train.steps=200")
        full, field = _locate(path.strip())
        value = _value_of(text.strip())
        if field.annotation is str and not isinstance(value, str):
            value = text.strip()
        _set(tree, full, value)
        located[tuple(full)] = (assignment, field)
    try:
        return PipelineConfig.model_validate(tree)
    except ValidationError as error:
        raise UsageError(_explain(error, located)) from None


def first_problem(error: ValueError) -> str:
    """The first thing that is wrong with a settings or config value: the key, why, and what was given."""
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']} (given {problem['input']!r})"


def _explain(error: ValidationError, located: dict[tuple[str, ...], tuple[str, FieldInfo]]) -> str:
    problem = error.errors()[0]
    where = tuple(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    for full, (assignment, field) in located.items():
        if where[: len(full)] == full:
            return f"--set {assignment}: {message}; allowed: {allowed_range(field)}. {field.description or ''}".strip()
    # A rule about several keys of a section speaks of the section: name the keys that were set in it.
    within = [assignment for full, (assignment, _) in located.items() if full[: len(where)] == where]
    named = "--set " + " --set ".join(within) if within else ".".join(where) or "config"
    return f"{named}: {message}"
