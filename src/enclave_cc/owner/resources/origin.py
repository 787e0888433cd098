"""Where a back-end's secret text is: a token, a PIN, a role's secret."""

from __future__ import annotations

import os
from pathlib import Path

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnvironmentFault
from enclave_cc.record import record


@record
class Origin:
    """A file or an environment variable. Read each time it is needed: who rotates a secret puts the new one there."""

    file: Path | None = None
    variable: str | None = None

    def read(self) -> Secret:
        """Raises `EnvironmentFault("store-denied")`, also for what could not go into a header: several lines, no ASCII."""
        if self.file is not None:
            try:
                text = self.file.read_bytes().strip()
            except OSError as error:
                raise EnvironmentFault("store-denied", f"{self.file} cannot be read: {error.strerror}") from error
        else:
            text = os.environb.get((self.variable or "").encode(), b"").strip()
        if not text or not all(0x21 <= byte < 0x7F for byte in text):
            raise EnvironmentFault("store-denied", f"{self} is empty, or holds more than one word of ASCII")
        return Secret(text)

    def __str__(self) -> str:
        return f"${self.variable}" if self.file is None else str(self.file)
