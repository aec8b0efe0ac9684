"""Files of a run: what each stage leaves, what a host reads of it and keeps, and what it downloads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from radit_jax.planning.deployment import EXAMPLE_TOKENS, INDEX_SHARE, Deployment
from radit_jax.planning.resources import ResourceEstimate, num_bytes, num_parameters
from radit_jax.runtime.distributed.accelerators import GIB

Reads = Mapping[str, Sequence[Sequence[str]]]  # by kind of stage: of each such stage, whose files it reads

BYTES_PER_RESULT = 8.0  # a retrieved chunk's row and its score
BYTES_PER_CHAR = 6.0 / 1.35  # of an example's text, a token: its word and the space
BYTES_PER_PAIR = 16.0  # of scores
HUB_BYTES = {"lm": 2, "encoder": 4}  # bytes a parameter of checkpoints, as most are published
# Stages of which every host writes its part: shards of embeddings, and shards of a model's arrays. What
# the others leave, process 0 writes alone.
WRITTEN_BY_ALL = ("base", "embed", "index", "retrieve", "lm_ft", "score", "r_ft")
# Of which a host opens the files that it searches, or its share of those that all then have.
OPENED_IN_PARTS = ("embed", "index", "retrieve", "score")
# Whose shards have chunks that follow each other, or none.
READ_IN_ORDER = ("embed", "index", "score")
# What an export reads where the store copies files by itself. On a disk it reads all that it gives a name.
EXPORTED_MODELS = ("lm_ft", "r_ft", "base/retriever")


class Disk(NamedTuple):
    """Bytes on the disk of one host, or on a shared one."""

    workdir: float  # all that stages leave; of a bucket the copies that this host has at a time
    downloads: float  # checkpoints from the hub, in the user's cache on every host

    @property
    def total(self) -> float:
        """Both together."""
        return self.workdir + self.downloads


def chunk_bytes(deployment: Deployment) -> float:
    """The corpus' chunks in their files."""
    counts = deployment.counts
    return counts.chunks * counts.chunk_words * deployment.assumptions.chunk_bytes_per_word


def index_bytes(deployment: Deployment) -> float:
    """ScaNN's trees, of one retriever."""
    return INDEX_SHARE * deployment.embeddings


def retrieved_bytes(deployment: Deployment, chunks_per_example: int) -> float:
    """Examples with the rows and scores of their chunks."""
    text = EXAMPLE_TOKENS * BYTES_PER_CHAR
    return deployment.counts.examples * (text + BYTES_PER_RESULT * chunks_per_example)


def score_bytes(deployment: Deployment) -> float:
    """One score for each chunk of an example, and one without any."""
    pairs_per_example = deployment.experiment.retrieve.num_chunks + 1
    return BYTES_PER_PAIR * deployment.counts.examples * pairs_per_example


def left_by(deployment: Deployment, stage: str) -> float:
    """Bytes that later stages read of what `stage` leaves; 0 for a name that leaves nothing to them."""
    kind, _, role = stage.partition("/")
    sizes: dict[str, Callable[[], float]] = {
        "corpus": lambda: chunk_bytes(deployment),
        "base": lambda: _base_bytes(deployment, role),
        "embed": lambda: deployment.embeddings,
        "index": lambda: index_bytes(deployment),
        "retrieve": lambda: retrieved_bytes(deployment, deployment.experiment.retrieve.num_chunks),
        "lm_ft": lambda: num_bytes(deployment.lm_params),
        "score": lambda: score_bytes(deployment),
        "r_ft": lambda: num_bytes(deployment.tower_params),
    }
    return sizes[kind]() if kind in sizes else 0.0


def _base_bytes(deployment: Deployment, role: str) -> float:
    """A base model as its stage leaves it: a retriever is two towers."""
    if role == "lm":
        return num_bytes(deployment.lm_params)
    if role == "labeller":
        return num_bytes(deployment.labeller_params)
    return 2 * num_bytes(deployment.tower_params)


def with_files(
    need: ResourceEstimate, deployment: Deployment, reads: Reads, *, in_bucket: bool
) -> ResourceEstimate:
    """`need` with the bytes that the first host reads and writes: a file that it opens counts whole."""
    read = downloaded(deployment) if need.stage == "base" else 0.0
    for names in reads.get(need.stage, ()):
        read += sum(opened(deployment, name, need.stage, in_bucket=in_bucket) for name in names)
    writers = deployment.target.num_hosts if need.stage in WRITTEN_BY_ALL else 1
    written = need.disk / writers
    # Files are read, and checked by their hashes, before a stage begins.
    seconds = (read + written) / deployment.assumptions.file_bandwidth
    limit = "files" if seconds > need.realistic else need.limit
    return replace(need, read=read, written=written, realistic=need.realistic + seconds, limit=limit)


def opened(deployment: Deployment, name: str, reader: str, *, in_bucket: bool) -> float:
    """Bytes that a host opens of what the stage `name` left, for a stage of the kind `reader`."""
    left = left_by(deployment, name)
    if reader == "export":
        return left if name in EXPORTED_MODELS or not in_bucket else 0.0
    kind, _, _ = name.partition("/")
    # Of chunks on a disk a host reads and verifies its share. In a bucket a row is in a file of 65,536.
    has_share = not in_bucket or reader in READ_IN_ORDER
    if kind in OPENED_IN_PARTS or (kind == "corpus" and has_share):
        return left / deployment.target.num_hosts
    return left


def downloaded(deployment: Deployment) -> float:
    """Bytes of checkpoints that every host gets from the hub, or wherever they are."""
    experiment = deployment.experiment
    total = 0.0
    if experiment.base.lm.checkpoint:
        total += HUB_BYTES["lm"] * num_parameters(deployment.lm_params)
    if experiment.score.checkpoint:
        total += HUB_BYTES["lm"] * num_parameters(deployment.labeller_params)
    retriever = experiment.base.retriever
    for checkpoint in (retriever.checkpoint, retriever.chunk_checkpoint):
        if checkpoint:
            total += HUB_BYTES["encoder"] * num_parameters(deployment.tower_params)
    return total


def disk_of(
    needs: Sequence[ResourceEstimate], deployment: Deployment, reads: Reads, *, in_bucket: bool
) -> Disk:
    """What is on a disk after the stages of `needs`; of a bucket, the most that a host has copies of."""
    downloads = downloaded(deployment)
    if not in_bucket:
        return Disk(sum(need.disk for need in needs), downloads)
    most = 0.0
    for number, need in enumerate(needs):
        # What no later stage reads was deleted. Of the rest a host has what it has opened so far.
        later: set[str] = set()
        for one in needs[number:]:
            later |= _names(reads, one.stage)
        copies: dict[str, float] = {}
        for one in needs[: number + 1]:
            for name in _names(reads, one.stage) & later:
                size = opened(deployment, name, one.stage, in_bucket=True)
                copies[name] = max(copies.get(name, 0.0), size)
        # Checkpoints of training go to the bucket at once; the result is written here first.
        written = need.written
        if need.stage in ("lm_ft", "r_ft"):
            written = left_by(deployment, need.stage) / deployment.target.num_hosts
        most = max(most, sum(copies.values()) + written)
    return Disk(most, downloads)


def _names(reads: Reads, kind: str) -> set[str]:
    """Whose files the stages of a kind are given."""
    found: set[str] = set()
    for names in reads.get(kind, ()):
        found.update(names)
    return found


def disk_fault(disk: Disk, limit: float, *, in_bucket: bool) -> str:
    """What is to be done where the disk of a host is too small; "" where it is not."""
    if disk.total <= limit:
        return ""
    what = "copies of the bucket and downloads" if in_bucket else "the workdir and downloads"
    remedy = "--scratch on a larger disk" if in_bucket else "--workdir in a bucket, or on a larger disk"
    return f"{what} take {disk.total / GIB:,.0f} GiB of a host that has {limit / GIB:,.0f}: {remedy}"
