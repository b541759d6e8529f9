"""The layout of a wheel, which setup.cfg can't express; everything else about the package is there.

A wheel has one package besides `data_shards`: `launch`, `slurm` and `tools`, whose names other packages use too, are in
``attributegan/_bundled``, and `configs/` is in ``attributegan/configs`` (see ``attributegan/utils/layout.py``). An editable install has all
of them where they are.
"""

from setuptools import find_packages, setup
from setuptools.command.editable_wheel import editable_wheel

BUNDLED = ("launch", "slurm", "tools")
FOUND = find_packages(include=[f"{name}{below}" for name in ("attributegan", "data_shards", *BUNDLED) for below in ("", ".*")])
MOVED = {name: f"attributegan._bundled.{name}" for name in FOUND if name.partition(".")[0] in BUNDLED}


class EditableWheel(editable_wheel):
    """An editable install, without the mapping of a wheel."""

    def run(self) -> None:
        self.distribution.packages, self.distribution.package_dir = FOUND, {}
        super().run()


setup(
    packages=[*(MOVED.get(name, name) for name in FOUND), "attributegan.configs"],
    package_dir={new: name.replace(".", "/") for name, new in MOVED.items()} | {"attributegan.configs": "configs"},
    cmdclass={"editable_wheel": EditableWheel},
)
