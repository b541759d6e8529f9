"""Lets a chaos case into the training processes that it starts: Python imports this file before all else where PYTHONPATH leads here.

Waits until a training imports `attributegan.training.trainer`, then arms what the variable CHAOS says. Does nothing in any other process.
"""

import importlib.abc
import importlib.util
import os
import sys

MODULE = "attributegan.training.trainer"


class _Arming(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_arm(module):
            load(module)
            import armed

            armed.arm(module)

        spec.loader.exec_module = load_and_arm
        return spec


if "CHAOS" in os.environ:
    sys.meta_path.insert(0, _Arming())
