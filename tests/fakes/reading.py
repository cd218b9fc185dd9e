"""What a process sees of a store, for tests in which several look at once."""

from __future__ import annotations

import hashlib
from pathlib import Path

from macl.data.store import Store


def digests(folder: Path) -> dict[str, str]:
    """Case and array → SHA-256 of its bytes, each slice read by itself."""
    store = Store.open(folder)
    return {
        f"{case.name} {kind}": hashlib.sha256(
            b"".join(
                store.read(case.name, kind, (slice(n, n + 1), None, None)).tobytes()
                for n in range(case.slices)
            )
        ).hexdigest()
        for case in store.index.cases
        for kind in case.arrays
    }
