"""No modules of the packages import each other in a circle, not even inside functions or for type checking."""

from __future__ import annotations

import grimp

PACKAGES = ("attributegan", "data_shards", "launch", "slurm", "tools")


def test_no_import_circles() -> None:
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    left = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(left) > 150
    while free := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in free:
            del left[module]
    # What remains is in a circle, or imports one; drop the latter, to name the former alone.
    while unused := [module for module in left if not any(module in imported for imported in left.values())]:
        for module in unused:
            del left[module]
    assert not left, f"import circles among {sorted(left)}"
