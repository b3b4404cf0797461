"""Every error the project raises on purpose.

DalleError                    one line for a person: the value, the limit, the remedy
├── UsageError                wrong use: unknown preset, unknown key, wrong type        (exit code 2)
├── SourceError               a source cannot be read, or holds nothing
├── DataError                 data breaks a contract: empty set, wrong schema, tokens of another tokenizer
├── StoreError                the artifact store failed
│   ├── StoreUnreachable      no such bucket, no network, no permission
│   ├── StoreFull             no space left where an object or a spool file is written
│   ├── CorruptObject         bytes differ from the recorded hash
│   ├── CommitConflict        another writer committed other content under the same fingerprint
│   ├── UnsafeStore           the store ignores create-only writes, so concurrent writers are refused
│   └── RefNotFound           no artifact answers to this reference
├── DeviceError               the asked-for device is missing, busy or too small
├── ServerError               Prefect's server does not start, or its API does not answer
│   └── ServerLost            it stopped answering while flows ran
├── PromotionRefused          a model is not better than the one that has the name
├── TrainingDiverged          the loss exploded or became non-finite; the last good checkpoint is kept
├── PreflightFailed           one batch repeated was not learnt, so a whole run would not be either
├── CodebookCollapsed         too few codes are used
└── StepFailed                a step's child process ended without a result
    └── StepTimeout           it passed its deadline and was stopped
"""


class DalleError(Exception):
    """Base of all expected errors. ``str(error)`` is one line that names the value, the limit and the remedy.

    again: the end of that line where the remedy is to repeat the command; who repeats it by himself leaves it out.
    """

    def __init__(self, text: str = "", again: str = "") -> None:
        super().__init__(text + again)
        self.again = again


class UsageError(DalleError):
    """The caller's words are off: an unknown preset, key, type or range."""


class SourceError(DalleError):
    """A source of pairs cannot be read or holds no pair."""


class DataError(DalleError):
    """Data breaks a contract between stages."""


class StoreError(DalleError):
    """The artifact store failed."""


class StoreUnreachable(StoreError):
    """The bucket, folder, network path or permission is missing."""


class StoreFull(StoreError):
    """No space is left for an object or for its spool file."""


class CorruptObject(StoreError):
    """An object's bytes differ from the hash that its manifest records."""


class CommitConflict(StoreError):
    """Another writer committed different content under the same fingerprint."""


class UnsafeStore(StoreError):
    """The store does not honour create-only writes."""


class RefNotFound(StoreError):
    """No artifact answers to a reference."""


class DeviceError(DalleError):
    """The device that was asked for is missing, busy or too small."""


class ServerError(DalleError):
    """Prefect's server does not start, or its API does not answer or refuses a request."""


class ServerLost(ServerError):
    """Prefect's API stopped answering while flows ran, and did not come back within its client's patience."""


class PromotionRefused(DalleError):
    """A model was to take over a name from one that it does not beat."""


class TrainingDiverged(DalleError):
    """The loss exploded or became non-finite."""


class PreflightFailed(DalleError):
    """Training on one batch again and again did not lower its loss."""


class CodebookCollapsed(DalleError):
    """The tokenizer uses too few of its codes."""


class StepFailed(DalleError):
    """A step's child process ended without a result."""


class StepTimeout(StepFailed):
    """A step passed its deadline and was stopped."""
