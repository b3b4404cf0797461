"""Scores that depend on more than a pair: mined phrases, own lists of words, and models; and their place in fingerprints.

Stored as objects of the curated artifact, so another threshold, and ``dalle curate --what-if``, only reads them.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dalle_model.config import CurateConfig
from dalle_model.curation.features import versions
from dalle_model.curation.judging import Context, check_languages, judged
from dalle_model.curation.phrases import PHRASES, Phrasebook, mine
from dalle_model.curation.rules import RULES, rules_of
from dalle_model.curation.texts import one_array
from dalle_model.curation.word_lists import WordList, parse_list
from dalle_model.errors import UsageError
from tasks.artifacts import Manifest, ObjectRef
from tasks.job import Job
from tasks.kin import EMBEDDING_MODEL
from tasks.model_scores import ROLES, embedding_digest, model_digests, model_scores, models_in
from tasks.settings import Settings
from tasks.store import Store
from tasks.tables import TableFile

PHRASES_ROLE = "phrases"


def outside_of(config: CurateConfig, settings: Settings) -> tuple[dict[str, Any], dict[str, str]]:
    """The config without places, and digests of what lies there.

    Raises UsageError for an unknown language or a file that is not there, DataError for a damaged list.
    """
    check_languages(config)
    outside = {f"curation.{name}": str(value) for name, value in versions().items()}
    if config.policy_file:
        outside["policy_file"] = policy_list(config.policy_file).digest
    if config.embedding_model:
        outside[EMBEDDING_MODEL] = embedding_digest(config)
    outside |= {f"model.{rule}": digest for rule, digest in model_digests(config, settings).items()}
    places = (
        "policy_file",
        "nsfw_model",
        "agreement_model",
        "embedding_model",
        "aesthetic_model",
    )  # that there is one is told by its digest
    return config.model_dump(mode="json") | dict.fromkeys(places, ""), outside


def policy_list(path: str) -> WordList:
    """The own list of words. UsageError when it cannot be read, DataError when it is no list."""
    try:
        return parse_list(Path(path).read_bytes(), path)
    except OSError as error:
        raise UsageError(
            f"curate.policy_file {path!r} cannot be read ({error.strerror}); give the path of a text file"
        ) from error


@dataclass(frozen=True)
class Scored:
    """Features of a pairs artifact as a config's rules see them; ``objects`` are what was made for that."""

    config: CurateConfig
    features: Sequence[ObjectRef]
    objects: tuple[ObjectRef, ...]
    context: Context
    phrases: pa.Table | None  # what was mined, records phrases.PHRASES
    models: Mapping[str, Sequence[ObjectRef]]  # scores of models by rule, one object per shard

    def tables(self, job: Job) -> Iterator[pa.Table]:
        """``judging.judged`` tables, shard by shard."""
        for shard, obj in enumerate(self.features):
            of_models = {
                rule: one_array(pq.read_table(job.fetch(objects[shard]))["score"])
                for rule, objects in self.models.items()
            }
            yield judged(pq.read_table(job.fetch(obj)), self.config, self.context, of_models)


def scored(job: Job, features: Sequence[ObjectRef]) -> Scored:
    """Make what the config asks for beside the features."""
    config: CurateConfig = job.config
    policy = policy_list(config.policy_file) if config.policy_file else None
    if policy is not None and policy.digest != job.spec.recorded_config["outside"].get("policy_file"):
        raise UsageError(f"{config.policy_file} changed after this step began; run it again")
    phrases = _mined(job, config, features)
    objects = () if phrases is None else (_filed(job, phrases),)
    context = Context(None if phrases is None else Phrasebook.of(phrases), policy)
    models = model_scores(job, models_in(job.spec.recorded_config["outside"]))
    made = (*objects, *chain(*models.values()))
    return Scored(config, features, made, context, phrases, models)


def _mined(job: Job, config: CurateConfig, features: Sequence[ObjectRef]) -> pa.Table | None:
    if not config.boilerplate_min_share:
        return None

    def captions() -> Iterator[pa.Array]:
        for obj in features:
            yield one_array(pq.read_table(job.fetch(obj), columns=["caption"])["caption"])
            job.check_stop()

    return mine(captions, config.boilerplate_min_share, config.boilerplate_allow)


def _filed(job: Job, phrases: pa.Table) -> ObjectRef:
    with TableFile(job.spool / "phrases.parquet", PHRASES) as out:
        out.add_table(phrases)
        return job.put(out.finish(), ext="parquet", role=PHRASES_ROLE, rows=phrases.num_rows)


def stored_tables(store: Store, curated: Manifest, config: CurateConfig) -> Iterator[pa.Table]:
    """``judging.judged`` tables of a curated artifact from its stored scores; nothing is measured again.

    Phrases are mined anew where the config mines others. Raises UsageError for scores that the artifact does not hold.
    """
    check_languages(config)
    policy = policy_list(config.policy_file) if config.policy_file else None
    models = {rule: curated.objects_of(role) for rule, role in ROLES.items()}
    for rule in rules_of(config):
        if rule.name in ROLES and not models[rule.name]:
            raise UsageError(
                f"curated {curated.fingerprint[:12]} holds no scores of {rule.name}; curate with that model first"
            )

    def features() -> Iterator[pa.Table]:
        for obj in curated.objects_of("features"):
            yield pq.read_table(io.BytesIO(store.read(obj)))

    phrases = _stored_phrases(store, curated, config, features)
    for shard, table in enumerate(features()):
        if missing := [rule.name for rule in RULES if rule.name not in table.column_names]:
            raise UsageError(
                f"curated {curated.fingerprint[:12]} of an earlier release holds no scores of {', '.join(missing)}; curate again with this release"
            )
        of_models = {
            rule: one_array(pq.read_table(io.BytesIO(store.read(objects[shard])))["score"])
            for rule, objects in models.items()
            if objects
        }
        yield judged(table, config, Context(phrases, policy), of_models)


def _stored_phrases(
    store: Store, curated: Manifest, config: CurateConfig, features: Callable[[], Iterator[pa.Table]]
) -> Phrasebook | None:
    if not config.boilerplate_min_share:
        return None
    recorded = curated.config["config"]
    if any(recorded.get(name) != getattr(config, name) for name in ("boilerplate_min_share", "boilerplate_allow")):

        def captions() -> Iterator[pa.Array]:
            return (one_array(table["caption"]) for table in features())

        return Phrasebook.of(mine(captions, config.boilerplate_min_share, config.boilerplate_allow))
    tables = [pq.read_table(io.BytesIO(store.read(obj))) for obj in curated.objects_of(PHRASES_ROLE)]
    return Phrasebook.of(pa.concat_tables(tables)) if tables else Phrasebook()
