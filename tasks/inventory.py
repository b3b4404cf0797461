"""All artifacts of a store: those that can be read, and what is wrong with the others."""

from collections.abc import Container
from typing import NamedTuple

from dalle_model.errors import CorruptObject, DataError
from tasks.artifacts import Manifest
from tasks.references import Known
from tasks.store import Store


class Inventory(NamedTuple):
    """Manifests in the order of a listing, and why a manifest that is listed cannot be read."""

    manifests: list[Manifest]
    unreadable: dict[Known, str]


def inventory(store: Store, besides: Container[str] = ()) -> Inventory:
    """Read every manifest, but for fingerprints that are known. One that is damaged, or of a newer release, is named.

    Raises StoreUnreachable when the store does not answer: a listing with gaps would pass for all there is.
    """
    manifests, unreadable = list[Manifest](), dict[Known, str]()
    for known in store.artifacts():
        if known.fingerprint in besides:
            continue
        try:
            manifest = store.find(*known)
        except (CorruptObject, DataError) as error:
            unreadable[known] = str(error)
            continue
        if manifest is not None:
            manifests.append(manifest)
    return Inventory(manifests, unreadable)


def all_or_error(store: Store, what: str) -> list[Manifest]:
    """Every manifest. CorruptObject, which says ``what`` is not done, when one or a name's record cannot be read."""
    manifests, unreadable = inventory(store)
    for why in unreadable.values():
        raise CorruptObject(f"{what} while a manifest is unreadable: {why}")
    try:
        for key in store.keys("refs/"):
            store.read_ref(key.removeprefix("refs/").removesuffix(".json"))
    except CorruptObject as error:
        raise CorruptObject(f"{what} while a name is unreadable: {error}") from error
    return manifests
