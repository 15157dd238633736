"""A fresh process, from the start of the runtime to a registered model's first answer.

`python -m benchmarks.first_answer HOME NAME FEEDS.npz` prints seconds as JSON: importing, opening
the home, the first prediction, the second.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np


def main() -> None:
    home, name, file = sys.argv[1:]
    feeds = dict(np.load(file))
    times = [time.perf_counter()]
    from whitebox import Runtime

    times.append(time.perf_counter())
    with Runtime(home) as runtime:
        times.append(time.perf_counter())
        for _ in range(2):
            runtime.predict(name, feeds)
            times.append(time.perf_counter())
    steps = ("imports", "open", "first", "second")
    print(json.dumps(dict(zip(steps, np.diff(times).tolist(), strict=True))))


if __name__ == "__main__":
    main()
