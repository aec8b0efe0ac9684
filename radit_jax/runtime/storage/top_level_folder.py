"""A stage's output at the workdir's top: an export, in which people also put files of their own."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from etils import epath

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage import locks
from radit_jax.runtime.storage.entries import (
    SIDECAR_SUFFIX,
    committed_names,
    files_under,
    move_aside,
    remove,
    size_and_hash,
)
from radit_jax.runtime.storage.stage_folder import StageFolder


class TopLevelFolder(StageFolder):
    """A stage's folder at the workdir's top: it holds one fingerprint's output at a time."""

    def __init__(
        self,
        home: epath.PathLike,
        fingerprint: str = "",
        path: epath.PathLike | None = None,
    ):
        super().__init__(home, path)
        self.stage = self.home.name
        self.fingerprint = fingerprint
        # Without one, it is whatever stands there.
        if not fingerprint and self.complete and self._manifest:
            self.fingerprint = self._manifest["fingerprint"]

    @property
    def complete(self) -> bool:
        """Whether the folder holds the whole output of this fingerprint."""
        if not super().complete or self._manifest is None:
            return False
        return self.fingerprint in ("", self._manifest["fingerprint"])

    @property
    def half_written(self) -> bool:
        """Whether a run began to fill the folder and did not finish; another fingerprint's may be whole."""
        return super().half_written and self._manifest is None

    def _check_names(self, manifest: Mapping[str, Any]) -> None:
        """Accept any manifest: people may move an export, and other settings replace it."""

    def commit_each(self, name: str, deep: bool = False) -> None:
        """Commit what is in a folder one by one, so that a person may put other files next to it.

        A folder inside is committed as a whole, as Orbax does not read its folder with a sidecar in it; with
        `deep` its files are, one by one.
        """
        processes.on_process_zero(f"{self} {name}/*", lambda: self._commit_each(name, deep))

    def _commit_each(self, name: str, deep: bool) -> None:
        locks.check_held(self.home)
        folder = self.path / name
        # What the store has copied may never have been on this machine.
        if self._is_copy and not folder.exists():
            self._local_copy(name, self._committed_record(name))
        children = files_under(folder) if deep else sorted(folder.iterdir())
        for child in children:
            relative = os.path.relpath(child, folder)
            self._write_sidecar(f"{name}/{relative}", size_and_hash(child))
        # The sidecar of the whole folder, which was copied with it.
        remove(self._sidecar(name))

    def holds(self, name: str) -> bool:
        """Whether the finished folder's manifest names `name`, or something in it."""
        names = self.manifest["files"]
        return any(f"{committed}/".startswith(f"{name}/") for committed in names)

    def verified_path(self, name: str) -> epath.Path:
        """The path of a file or folder, verified: its bytes are those that were written.

        In a folder that was committed one by one, files of a person's are not verified, nor is a README.md:
        people write their own model cards.
        """
        names = self.manifest["files"] if self.complete else committed_names(self.home)
        names_inside = [committed for committed in names if committed.startswith(f"{name}/")]
        if not names_inside:
            return super().verified_path(name)
        for name_inside in names_inside:
            if not name_inside.endswith("/README.md"):
                super().verified_path(name_inside)
        return self.path / name

    def _clear(self) -> None:
        """Delete the folder; one in which a person has put something is kept whole, under another name."""
        if not self._is_copy and self._foreign_names():
            locks.check_held(self.home)
            move_aside(self.home, "it holds files that no run wrote")
        super()._clear()

    def _foreign_names(self) -> list[str]:
        """Files in a finished folder that no run wrote, except hidden ones; model cards that were edited."""
        _ = self.complete  # it reads the manifest, of whichever fingerprint
        if self._manifest is None:
            return []
        foreign = []
        for file in files_under(self.home):
            name = pathlib.PurePosixPath(os.path.relpath(file, self.home))
            if self._is_foreign(name, file, self._manifest["files"]):
                foreign.append(str(name))
        return foreign

    @staticmethod
    def _is_foreign(
        name: pathlib.PurePosixPath,
        file: epath.Path,
        records: Mapping[str, Any],
    ) -> bool:
        # A kill may leave a sidecar.
        if str(name) == "manifest.json" or name.suffix == SIDECAR_SUFFIX:
            return False
        if any(part.startswith(".") for part in name.parts):
            return False
        record = records.get(str(name))
        if record is not None:
            # An edited model card is a person's.
            return name.name == "README.md" and size_and_hash(file) != record
        return not any(str(folder) in records for folder in name.parents)
