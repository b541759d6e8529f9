"""Write docs/licences.md: the packages of setup.cfg and configs/constraints.txt, as installed here, with their licences; rows of packages
that are not installed are kept.

.venv/bin/python docs/licences.py
"""

import re
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEAD = """# Licences of dependencies

The packages that `make venv` and the extras `trackers`, `encoders` and `bench` install, with the licences in their metadata; written by
`make licences`. None of them is part of this repository.

| package | version | licence |
|---|---|---|
"""


def licence(package: metadata.PackageMetadata) -> str:
    """Return the licence expression, the classifiers, or the first line of the licence field."""
    classifiers = [entry.rpartition(" :: ")[2] for entry in package.get_all("Classifier") or [] if entry.startswith("License ::")]
    stated = package.get("License-Expression") or ", ".join(classifiers) or (package.get("License") or "").strip().splitlines()[:1]
    return stated if isinstance(stated, str) else "".join(stated)[:60]


def main() -> None:
    pinned = [line.partition("==")[0] for line in (ROOT / "configs" / "constraints.txt").read_text().splitlines() if "==" in line]
    named = re.findall(r"^    ([A-Za-z0-9_.-]+)(?:\[\w+\])?(?:[><=]=?[^\n]*)?$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    page = ROOT / "docs" / "licences.md"
    before = {
        line.split("|")[1].strip().lower().replace("_", "-"): f"{line}\n" for line in page.read_text().splitlines() if line.startswith("| ")
    }
    lines = []
    for name in sorted({name.lower().replace("_", "-") for name in [*pinned, *named]}):
        try:
            package = metadata.metadata(name)
        except metadata.PackageNotFoundError:  # of an extra that is not installed here
            lines += [before[name]] if name in before else []
            continue
        lines.append(f"| {package['Name']} | {package['Version']} | {licence(package)} |\n")
    page.write_text(HEAD + "".join(lines))


if __name__ == "__main__":
    main()
