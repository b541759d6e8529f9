"""Imports a mutated module instead of the real one, in this process and its children.

`MUTANT` names a JSON file with the name of the module, the path of the real file, and the mutated source. Python imports this file at
start-up from the folder in `PYTHONPATH`.
"""

import importlib.util
import json
import os
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        return compile(MUTANT["source"], self.path, "exec")


class _Finder:
    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != MUTANT["module"]:
            return None
        return importlib.util.spec_from_file_location(name, MUTANT["path"], loader=_Loader(name, MUTANT["path"]))


if "MUTANT" in os.environ:
    MUTANT = json.loads(Path(os.environ["MUTANT"]).read_text())
    sys.meta_path.insert(0, _Finder())
