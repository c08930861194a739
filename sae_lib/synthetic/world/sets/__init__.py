"""Labelled sets with fixed splits, for every evaluation and application; see `task_rows`.

A file here that registers a `TaskSet` adds a set. Columns are those of the real data sets that a
set stands for, where there are such.
"""

from sae_lib.registry import import_members
from sae_lib.synthetic.world.sets._base import SETS, USES, Row, TaskSet, task_rows

import_members(__name__, __path__)

__all__ = ["SETS", "USES", "Row", "TaskSet", "task_rows"]
