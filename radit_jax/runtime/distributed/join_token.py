"""The join token: a secret by which the processes of one program know each other.

It is in the environment (RADIT_JOIN_TOKEN, where launch/ puts it), or in a file that process 0 writes to a
workdir that all processes see.
"""

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

TOKEN_VARIABLE = "RADIT_JOIN_TOKEN"
TOKEN_FILE = "join-token"  # in the workdir


class JoinToken:
    """The program's secret: from the environment, else from the file `path` that process 0 writes."""

    def __init__(self, path: Path | None, environment: Mapping[str, str] = os.environ):
        self._given = environment.get(TOKEN_VARIABLE, "")
        self._path = None if self._given else path

    @property
    def is_known(self) -> bool:
        """Whether there is a token. Without one, the program trusts its network."""
        return bool(self._given) or self._path is not None

    def publish(self) -> str:
        """Process 0: the token, written to the file from which the others read it, if there is one."""
        if self._path is None:
            return self._given
        token = secrets.token_hex(16)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Only this user may read it, and a reader sees a whole token or none.
        new_name = f"{self._path.name}.{os.getpid()}.new"
        new_file = self._path.with_name(new_name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        descriptor = os.open(new_file, flags, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(token)
        new_file.replace(self._path)
        return token

    def read(self) -> str:
        """Any other process: the token at this moment; "" where process 0 has not written one yet."""
        if self._path is None:
            return self._given
        with contextlib.suppress(FileNotFoundError):
            return self._path.read_text(errors="replace").strip()
        return ""

    def remove(self) -> None:
        """Process 0, once all have joined: delete the file, and its folder if nothing else is in it."""
        if self._path is None:
            return
        # The folder goes only if this run made it and put nothing else in it.
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._path.parent.rmdir()
