"""A committed folder of many files, of which a machine fetches from a bucket those that it reads.

Next to the folder lies a list of its files, as `sha256sum` prints it. The hash that is recorded of the folder
is that of the list: so it vouches for the list, and the list for each file.
"""

import hashlib
import os
import threading

from etils import epath

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage import bucket
from radit_jax.runtime.storage.entries import files_under
from radit_jax.runtime.storage.hashes import hash_file, hash_files, listing
from radit_jax.runtime.storage.stage_folder import StageFolder

LIST = ".list"  # after the folder's name


def commit_listed(folder: StageFolder, name: str) -> None:
    """Commit a folder that another library wrote, and the list of its files."""
    folder.commit(name)

    def write_list() -> None:
        path = folder.path / name
        files = files_under(path)
        names = [os.path.relpath(file, path) for file in files]
        folder.write(f"{name}{LIST}", listing(hash_files(files), names))

    processes.on_process_zero(f"{folder} {name}{LIST}", write_list)


class ListedFolder:
    """The files directly in a committed folder, each verified when a process first uses it, in any thread.

    On a disk all are verified at once, and so is a folder without a list. All processes make one together.
    """

    def __init__(self, folder: StageFolder, name: str):
        self._folder = folder
        self._name = name
        self._digests = self._listed()
        self._whole: set[str] = set()  # the files that were verified
        self._lock = threading.Lock()
        if not self._digests:
            folder.verified_path(name)
        here = [file.name for file in files_under(folder.path / name)]
        self.names = sorted(self._digests or here)

    def path(self, file: str) -> epath.Path:
        """The path of a file on this machine."""
        path = self._folder.path / self._name / file
        with self._lock:
            if self._digests and file not in self._whole:
                self._fetch(file, path)
                self._whole.add(file)
        return path

    def _listed(self) -> dict[str, str]:
        """The hash of each file, where they are fetched one by one; else nothing."""
        folder, name = self._folder, f"{self._name}{LIST}"
        if not (bucket.is_bucket(folder.home) and folder.complete and folder.has(name)):
            return {}
        data = folder.read(name)
        # A list of other files vouches for none.
        record = folder.manifest["files"][self._name]
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            return {}
        digests = {}
        for line in data.decode().splitlines():
            digest, _, file = line.partition("  ")
            digests[file] = digest
        return digests

    def _fetch(self, file: str, path: epath.Path) -> None:
        """Download a file unless it is here; ValueError where its bytes are not those that were written."""
        digest = self._digests[file]
        if path.exists() and hash_file(path) == digest:
            return
        # It gets its name when it is whole: another process of this machine may fetch it, too.
        home = self._folder.home / self._name / file
        part = self._folder.path / f"{self._name}-{file}.{os.getpid()}.part"
        bucket.download(home, part)
        if not part.exists() or hash_file(part) != digest:
            raise ValueError(
                f"{home}: expected the bytes that were written, got altered bytes. {self._folder.remedy}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, path)
