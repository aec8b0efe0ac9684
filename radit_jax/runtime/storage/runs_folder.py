"""Which workdir is meant where the command line names none: the only one under runs/."""

from etils import epath

from radit_jax.runtime.storage.entries import modified, subfolders

RUNS_FOLDER = "runs"  # in which a run without --workdir makes its own
_WRITTEN_BY_RUNS = ("workdir.json", "runs.jsonl")


def known_workdirs() -> list[str]:
    """The workdirs under runs/, the one of the last run first."""
    newest: dict[str, float] = {}
    for folder in subfolders(epath.Path(RUNS_FOLDER)):
        times = [modified(folder / name) for name in _WRITTEN_BY_RUNS if (folder / name).exists()]
        if times:
            newest[str(folder)] = max(times)
    return sorted(newest, key=lambda path: newest[path], reverse=True)


def default_workdir() -> str:
    """The only workdir under runs/; ValueError where there are several, or none."""
    known = known_workdirs()
    if len(known) == 1:
        return known[0]
    if not known:
        raise ValueError(
            f"--workdir: expected a run in {RUNS_FOLDER}/, got none. Name its folder, or run an experiment."
        )
    raise ValueError(
        f"--workdir: expected one run in {RUNS_FOLDER}/, got {len(known)}: {', '.join(known)}. Name one; the "
        "first ran last."
    )
