"""
Remake constraints.txt from setup.py: `make lock`, with Python 3.10 to 3.13 on the PATH.

Each Python resolves every extra by itself. The later ones take what 3.11 found wherever they can,
so that few lines need a marker.
"""

from __future__ import annotations

import json
from pathlib import Path
import re
import subprocess
import sys
import tempfile

HERE = Path(__file__).resolve().parent
PYTHONS = ('3.11', '3.10', '3.12', '3.13')
EXTRAS = 'policy,sim,bags,lerobot,train,jazzy,test,dev'
# `colcon build --symlink-install` needs `setup.py develop`, which setuptools 80 dropped.
TOOLS = ('pip', 'setuptools<80', 'wheel')
# torch pins its CUDA libraries itself; a CPU build has none.
UNPINNED = re.compile(r'(nvidia|cuda)-.*|triton|diffusion-policy-ros')
HEADER = """\
# Every version that `make` installs, for Python 3.10 to 3.13. Remade by `make lock`.
"""


def resolve(python: str, constraints: dict[str, str]) -> dict[str, str]:
    """Return name to version of all that one Python would install."""
    with tempfile.TemporaryDirectory() as folder:
        venv, report, limits = (Path(folder, name) for name in ('venv', 'report.json', 'limits'))
        limits.write_text(''.join(f'{name}=={version}\n' for name, version in constraints.items()))
        subprocess.run([f'python{python}', '-m', 'venv', venv], check=True)
        pip = [venv / 'bin' / 'python', '-m', 'pip', 'install', '--quiet']
        subprocess.run([*pip, '--upgrade', 'pip'], check=True)
        subprocess.run([*pip, '--dry-run', '--ignore-installed', '--report', report,
                        '--constraint', limits, *TOOLS, f'{HERE.parent}[{EXTRAS}]'], check=True)
        found = json.loads(report.read_text())['install']
    versions = {}
    for item in found:
        name = re.sub(r'[-_.]+', '-', item['metadata']['name']).lower()
        if not UNPINNED.fullmatch(name):
            versions[name] = item['metadata']['version'].split('+')[0]
    return versions


def lines(found: dict[str, dict[str, str]]) -> list[str]:
    """Return one line a package, or one a Python where they differ."""
    result = []
    for name in sorted(set().union(*found.values())):
        versions = {python: found[python].get(name) for python in PYTHONS}
        present = {version for version in versions.values() if version}
        if len(present) == 1:
            result.append(f'{name}=={present.pop()}')
            continue
        common = versions['3.11']
        for python, version in sorted(versions.items()):
            if version and version != common:
                result.append(f"{name}=={version}; python_version == '{python}'")
        if common:
            others = [f"python_version != '{python}'" for python, version
                      in sorted(versions.items()) if version and version != common]
            result.append(f'{name}=={common}; ' + ' and '.join(others))
    return result


def main() -> None:
    found: dict[str, dict[str, str]] = {}
    for python in PYTHONS:
        print(f'Python {python} ...', file=sys.stderr)
        found[python] = resolve(python, found['3.11'] if python > '3.11' else {})
    (HERE / 'constraints.txt').write_text(HEADER + '\n'.join(lines(found)) + '\n')


if __name__ == '__main__':
    main()
