"""What a stage leaves at the workdir's top: an export, in which people also put files of their own."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from etils import epath

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage import locks
from radit_jax.runtime.storage.entries import committed_names, files_under, move_aside, remove, size_and_hash
from radit_jax.runtime.storage.stage_folder import StageFolder


class TopLevelFolder(StageFolder):
    """A stage's folder at the workdir's top: it holds one fingerprint's output at a time."""

    def __init__(
        self,
        home: str | os.PathLike[str],
        fingerprint: str = "",
        path: str | os.PathLike[str] | None = None,
    ):
        super().__init__(home, path)
        self.stage = self.home.name
        self.fingerprint = fingerprint
        if not fingerprint and self.complete and self._manifest:
            self.fingerprint = self._manifest["fingerprint"]

    def _demand_own(self, manifest: Mapping[str, Any]) -> None:
        """Any manifest will do: people may move what is published, and other settings replace it."""

    def commit_each(self, name: str) -> None:
        """Commits what is in a folder one by one, so that a person may put other files next to it."""
        processes.on_process_zero(f"{self} {name}/*", lambda: self._commit_each(name))

    def _commit_each(self, name: str) -> None:
        locks.check_held(self.home)
        # Folders in it stay whole: Orbax reads none of its own that a sidecar was left in.
        for child in sorted((self.path / name).iterdir()):
            self._commit(f"{name}/{child.name}", size_and_hash(child))
        remove(self._sidecar(name))  # of the whole, from which the files are copied

    def holds(self, name: str) -> bool:
        """Whether the finished folder's manifest names a file, or a folder or files in it."""
        return any(f"{one}/".startswith(f"{name}/") for one in self.manifest["files"])

    def verified_path(self, name: str) -> epath.Path:
        """The path of a file or folder whose bytes are those that were written.

        Of a folder whose content is committed one by one nothing else is checked, nor a README.md: people
        write their own model cards.
        """
        names = self.manifest["files"] if self.complete else committed_names(self.home)
        inside = [one for one in names if one.startswith(f"{name}/")]
        for one in inside:
            if not one.endswith("/README.md"):
                super().verified_path(one)
        return self.path / name if inside else super().verified_path(name)

    def _clear(self) -> None:
        """Deletes the folder; one in which a person has put something is kept whole, under another name."""
        if not self._is_copy and self._strangers():
            locks.check_held(self.home)
            move_aside(self.home, "it holds files that no run wrote")
        super()._clear()

    def _strangers(self) -> list[str]:
        """What no run wrote in a finished folder, but for hidden files; model cards that were edited."""
        _ = self.complete  # it reads the manifest, of whichever fingerprint
        if self._manifest is None:
            return []
        own, found = self._manifest["files"], []
        for file in files_under(self.home):
            name = pathlib.PurePosixPath(os.path.relpath(file, self.home))
            if str(name) == "manifest.json" or name.suffix == ".sha256":  # a kill may leave the latter
                continue
            if any(part.startswith(".") for part in name.parts):
                continue
            if str(name) in own:
                edited = name.name == "README.md" and size_and_hash(file) != own[str(name)]
            else:
                edited = not any(str(folder) in own for folder in name.parents)
            found += [str(name)] * edited
        return found

    @property
    def half_written(self) -> bool:
        """Whether a run began to fill the folder and did not finish; another fingerprint's may be whole."""
        return super().half_written and self._manifest is None

    @property
    def complete(self) -> bool:
        """Whether what stands there is whole and of this fingerprint."""
        return super().complete and self.fingerprint in ("", (self._manifest or {})["fingerprint"])
