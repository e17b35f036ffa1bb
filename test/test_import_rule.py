"""
The import rule of diffusion_policy_ros/__init__.py, held against every module.

All modules are imported in a clean process with the forbidden packages blocked, which sees what an
import drags in; and every import statement is read, which sees those inside functions, too.
"""

from __future__ import annotations

import ast
from importlib.util import find_spec
import json
from pathlib import Path
import subprocess
import sys

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = 'diffusion_policy_ros'
ROS = ('ament_index_python', 'builtin_interfaces', 'cv_bridge', 'launch', 'launch_ros',
       'rcl_interfaces', 'rclpy', 'std_srvs',
       *(f'{name}_msgs' for name in ('diagnostic', 'geometry', 'lifecycle', 'rosgraph', 'sensor',
                                     'std', 'tf2', 'trajectory', 'visualization')))
TORCH = ('accelerate', 'safetensors', 'torch', 'torchvision')
# The policy node, what it predicts with, and the script that prints every node's parameters.
WITH_TORCH = tuple(f'{PACKAGE}.nodes.{name}'
                   for name in ('policy_node', 'predictor', 'parameter_table'))
BASE = (f'{PACKAGE}.datatypes', f'{PACKAGE}.typed')

IMPORT_ALL = """
import importlib, importlib.abc, json, sys

forbidden, modules = json.loads(sys.argv[1])

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == word or name.startswith(word + '.') for word in forbidden):
            raise ImportError(f'{name} is forbidden here')

sys.meta_path.insert(0, Block())
failures = []
for module in modules:
    try:
        importlib.import_module(module)
    except ImportError as error:
        failures.append(f'{module}: {error}')
loaded = [word for word in forbidden if word in sys.modules]
print(json.dumps(failures + [f'{word} was loaded' for word in loaded]))
"""


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the package."""
    parts = path.relative_to(REPOSITORY).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


FILES = {module_name(path): path for path in sorted((REPOSITORY / PACKAGE).rglob('*.py'))}


def in_folder(module: str, *folders: str) -> bool:
    """Return whether a module lies in one of the package's folders."""
    return any(f'{module}.'.startswith(f'{PACKAGE}.{folder}.') for folder in folders)


def is_torch_free(module: str) -> bool:
    """Return whether a module must do without PyTorch."""
    if module in (f'{PACKAGE}.policy.config', f'{PACKAGE}.policy.checkpoint_config'):
        return True
    return not in_folder(module, 'policy', 'data') and module not in WITH_TORCH


def failures(modules: list[str], forbidden: tuple[str, ...]) -> list[str]:
    """Import modules in a clean process without the forbidden packages; return what went wrong."""
    result = subprocess.run(
        [sys.executable, '-c', IMPORT_ALL, json.dumps([forbidden, modules])],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def imports(path: Path) -> set[str]:
    """Return every module that a file imports, inside functions and conditions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: line {node.lineno} is a relative import'
            found.add(node.module)
    return found


def of_package(name: str, packages: tuple[str, ...]) -> bool:
    """Return whether a module is one of the packages, or inside one."""
    return any(name == package or name.startswith(f'{package}.') for package in packages)


def test_core_imports_without_ros():
    modules = [module for module in FILES if not in_folder(module, 'nodes')]
    assert len(modules) > 10
    assert failures(modules, ROS) == []


def test_robot_side_imports_without_torch():
    has_ros, has_launch = (find_spec(name) is not None for name in ('rclpy', 'launch_ros'))
    modules = [module for module in FILES
               if is_torch_free(module) and (has_ros or not in_folder(module, 'nodes'))
               and (has_launch or not in_folder(module, 'nodes.launching'))]
    if has_ros:
        assert f'{PACKAGE}.nodes.chunk_executor_node' in modules
    assert failures(modules, TORCH) == []


def test_policy_imports_without_the_other_folders():
    modules = [module for module in FILES if in_folder(module, 'policy')]
    others = tuple(f'{PACKAGE}.{folder}' for folder in ('control', 'data', 'nodes', 'sim'))
    assert failures(modules, others) == []


def test_the_block_blocks():
    assert failures([f'{PACKAGE}.datatypes'], ('numpy',)) == [
        f'{PACKAGE}.datatypes: numpy is forbidden here']
    assert failures([f'{PACKAGE}.policy.unet'], ('torch',)) != []


@pytest.mark.parametrize('module', FILES)
def test_no_statement_breaks_the_rule(module):
    names = imports(FILES[module])
    if FILES[module].name == '__init__.py':
        assert names == set(), 'a package imports nothing by itself'
    if not in_folder(module, 'nodes'):
        assert [name for name in names if of_package(name, ROS)] == []
    if is_torch_free(module):
        assert [name for name in names if of_package(name, TORCH)] == []
    if in_folder(module, 'policy'):
        assert [name for name in names if of_package(name, (PACKAGE,))
                and name not in BASE and not in_folder(name, 'policy')] == []
    if in_folder(module, 'control'):
        allowed = {'numpy', PACKAGE, *sys.stdlib_module_names}
        if module.endswith('.images'):
            allowed.add('cv2')
        assert {name.split('.')[0] for name in names} <= allowed
