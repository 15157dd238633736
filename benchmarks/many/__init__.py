"""Hundreds of models in one process, against a session a model: `python -m benchmarks many`.

`data` has the real data, `sentiment` `attendance` `heads` `cnns` `unrelated` make the models,
`sets` keeps them on disk. `engines` are what is compared, `host` is the process an engine has to
itself, `load` asks, `measure` says what is asked of whom, `report` shows what came out.
"""

from __future__ import annotations

# Recipes that make other models get another number; files of older ones are not used.
REVISION = 1
