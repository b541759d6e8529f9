"""Hooks chaos cases into training processes: Python imports this file at start-up if its folder is on PYTHONPATH.

After `attributegan.training.trainer` is imported, arms the fault of the variable CHAOS. Does nothing in other processes.
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
