"""How long does it take to open a store of many cases? Its index repeats a tiny case.

python benchmarks/open_store.py --cases 10000
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from macl.data.store import Store

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fakes.index import many


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = many(Path(folder) / "many.store", arguments.cases)
        megabytes = (store / "store.json").stat().st_size / 1e6
        for _ in range(arguments.turns):
            wall, processor = time.perf_counter(), time.process_time()
            Store.open(store)
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            print(
                f"{arguments.cases} cases, {megabytes:.1f} MB of index: {wall:.2f} s, "
                f"{processor:.2f} s of a core"
            )


if __name__ == "__main__":
    main()
