"""What package.xml, setup.py and the lock file promise, held against the files and the imports."""

from __future__ import annotations

import ast
import json
from pathlib import Path
import re
import shutil
import subprocess
import sys
from zipfile import ZipFile

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = 'diffusion_policy_ros'

# Import name -> requirement in setup.py, key in package.xml. None: there is no such thing.
NAMES = {
    'ament_index_python': (None, 'ament_index_python'),
    'cv2': ('opencv-python-headless', 'python3-opencv'),
    'dacite': ('dacite', None),
    'gymnasium': ('gymnasium', None),
    'imageio_ffmpeg': ('imageio-ffmpeg', None),
    'launch': (None, 'launch'),
    'launch_ros': (None, 'launch_ros'),
    'mcap': ('mcap', None),
    'metaworld': ('metaworld', None),
    'mujoco': ('mujoco', None),
    'numcodecs': ('zarr', None),
    'pyarrow': ('pyarrow', None),
    'ray': ('ray', None),
    'rosbags': ('rosbags', None),
    'safetensors': ('safetensors', None),
    'tensorboard': ('tensorboard', None),
    'torch': ('torch', None),
    'torchvision': ('torchvision', None),
    'accelerate': ('accelerate', None),
    'yaml': ('pyyaml', 'python3-yaml'),
    'zarr': ('zarr', None),
}
# What rclpy's wheel brings along, so that no requirement names it.
WITH_RCLPY = ('ament_index_python', 'builtin_interfaces', 'rcl_interfaces', 'rosgraph_msgs')
# Packages whose programs are started, and where.
PROGRAMS = {'joy': 'docs/record_demos.md', 'rviz2': 'launch/metaworld_sim.launch.py'}
OPTIONAL = ('launch', 'launch_ros', 'tf2_msgs')
ROS_PACKAGE = re.compile(r'rclpy|cv_bridge|std_srvs|builtin_interfaces|rcl_interfaces|\w+_msgs')


@pytest.fixture(scope='module')
def arguments() -> dict:
    """Return what setup.py hands to setup()."""
    code = ('import json, sys, setuptools; sys.argv = ["setup.py"]; '
            'setuptools.setup = lambda **given: print(json.dumps(given)); '
            'exec(open("setup.py").read())')
    result = subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, check=True,
                            capture_output=True, text=True)
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope='module')
def package():
    """Return package.xml as catkin_pkg reads it."""
    catkin_pkg = pytest.importorskip('catkin_pkg.package')
    warnings: list[str] = []
    result = catkin_pkg.parse_package(str(REPOSITORY), warnings=warnings)
    assert warnings == []
    return result


def requirement_names(requirements: list[str]) -> set[str]:
    """Return the names of requirements without their versions."""
    return {re.match(r'[\w.-]+', item).group().lower().replace('_', '-') for item in requirements}


def imported() -> dict[str, str]:
    """Return each third-party module that the package, launch/ or training/ imports, and where."""
    found: dict[str, str] = {}
    scripts = {path.stem for path in (REPOSITORY / 'training').glob('*.py')}
    for folder in (PACKAGE, 'launch', 'training'):
        for path in sorted((REPOSITORY / folder).rglob('*.py')):
            for node in ast.walk(ast.parse(path.read_text())):
                names = ([alias.name for alias in node.names] if isinstance(node, ast.Import)
                         else [node.module] if isinstance(node, ast.ImportFrom) else [])
                for name in (name.split('.')[0] for name in names):
                    if name not in {*sys.stdlib_module_names, PACKAGE, *scripts}:
                        found.setdefault(name, str(path.relative_to(REPOSITORY)))
    return found


def test_package_xml_is_valid(package):
    package.validate()
    assert package.package_format == 3
    assert package.name == PACKAGE
    assert package.licenses == ['Apache-2.0']
    assert [export.content for export in package.exports if export.tagname == 'build_type'] == [
        'ament_python']


def test_setup_and_package_xml_agree(package, arguments):
    assert arguments['name'] == package.name
    assert arguments['version'] == package.version
    assert arguments['description'] == package.description
    assert arguments['license'] == package.licenses[0]
    maintainer = package.maintainers[0]
    assert (arguments['maintainer'], arguments['maintainer_email']) == (
        maintainer.name, maintainer.email)


def test_every_import_is_declared(package, arguments):
    declared = {item.name for item in package.exec_depends}
    extras = arguments['extras_require']
    required = requirement_names(
        arguments['install_requires']
        + [item for extra in ('policy', 'sim', 'bags', 'lerobot', 'train', 'ray', 'jazzy')
           for item in extras[extra]])
    required |= {name.removeprefix('ros-jazzy-') for name in required}
    missing = []
    for name, path in imported().items():
        requirement, key = NAMES.get(
            name, (name, name if ROS_PACKAGE.fullmatch(name) else f'python3-{name}'))
        if name in WITH_RCLPY + OPTIONAL:
            requirement = None
        if requirement and requirement.replace('_', '-') not in required:
            missing.append(f'{path} imports {name}: no {requirement} in setup.py')
        if key and key not in declared:
            missing.append(f'{path} imports {name}: no {key} in package.xml')
    assert missing == []


def test_every_dependency_is_used(package):
    comment = re.search(r'<!-- (From PyPI.*?) -->', (REPOSITORY / 'package.xml').read_text(),
                        re.DOTALL).group(1)
    from_pypi = set(re.split(r'[,\s]+', comment.rsplit(':', 1)[1].strip().rstrip('.')))
    names = imported()
    keys, wheels = set(), set()
    for name in names:
        requirement, key = NAMES.get(
            name, (name, name if ROS_PACKAGE.fullmatch(name) else f'python3-{name}'))
        (keys if key else wheels).add(key or requirement)
    assert {item.name for item in package.exec_depends} - keys == set(PROGRAMS)
    for name, path in PROGRAMS.items():
        assert re.search(rf'\b{name}\b', (REPOSITORY / path).read_text())
    assert wheels - from_pypi == set()


def test_every_entry_point_is_a_module_with_main(arguments):
    scripts = arguments['entry_points']['console_scripts']
    assert {script.split(' = ')[0] for script in scripts} == {
        'policy', 'chunk_executor', 'metaworld_bridge', 'expert', 'demo_recorder',
        'joy_teleop', 'sim_runner', 'metaworld_sim', 'record_demos', 'recover_bag'}
    for script in scripts:
        module, function = script.split(' = ')[1].split(':')
        path = REPOSITORY / Path(*module.split('.')).with_suffix('.py')
        assert path.is_file(), f'{script}: there is no {path}'
        functions = {node.name for node in ast.parse(path.read_text()).body
                     if isinstance(node, ast.FunctionDef)}
        assert function in functions, f'{script}: {path} has no {function}()'


def test_share_holds_every_file(arguments):
    share = f'share/{PACKAGE}'
    carried = {f'{where}/{Path(name).name}': name
               for where, names in arguments['data_files'] for name in names}
    assert all((REPOSITORY / name).is_file() for name in carried.values())
    assert f'share/ament_index/resource_index/packages/{PACKAGE}' in carried
    assert f'{share}/package.xml' in carried
    tracked = subprocess.run(['git', 'ls-files', 'launch', 'config'], cwd=REPOSITORY,
                             capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip('this is no git checkout: what belongs into share/ is not known')
    names = tracked.stdout.split()
    assert any(name.endswith('.launch.py') for name in names)
    assert any(name.endswith('model.safetensors') for name in names)
    assert {f'{share}/{name}' for name in names} <= set(carried)


def pinned(name: str) -> set[str]:
    """Return the names that a lock file pins."""
    lines = [line for line in (REPOSITORY / 'lock' / name).read_text().splitlines()
             if not line.startswith('#')]
    assert [line for line in lines if not re.match(r'[\w-]+==[\w.]+(; .+)?$', line)] == []
    return {line.split('==')[0] for line in lines}


def test_lock_pins_every_requirement(arguments):
    extras = arguments['extras_require']
    installed = [item for name in extras.keys() - {'ray'} for item in extras[name]]
    wanted = requirement_names(arguments['install_requires'] + installed)
    assert wanted - pinned('constraints.txt') == set()
    assert pinned('numpy1.txt') <= pinned('constraints.txt')


def test_wheel_carries_executables_and_share(arguments, tmp_path):
    pytest.importorskip('wheel', reason='the wheel package is missing: pip cannot build offline')
    source = tmp_path / 'source'
    source.mkdir()
    for name in (PACKAGE, 'config', 'launch', 'resource'):
        shutil.copytree(REPOSITORY / name, source / name,
                        ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('package.xml', 'setup.cfg', 'setup.py'):
        shutil.copy(REPOSITORY / name, source / name)
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps',
                    '--no-build-isolation', '--wheel-dir', tmp_path, source],
                   check=True, capture_output=True)
    with ZipFile(next(tmp_path.glob('*.whl'))) as wheel:
        data = f'{PACKAGE}-{arguments["version"]}.data/data'
        modes = {item.filename: item.external_attr >> 16 for item in wheel.infolist()}
        for script in arguments['entry_points']['console_scripts']:
            name = script.split(' = ')[0]
            assert modes[f'{data}/lib/{PACKAGE}/{name}'] & 0o111 == 0o111, f'{name} cannot run'
        names = set(modes)
    for where, files in arguments['data_files']:
        assert {f'{data}/{where}/{Path(name).name}' for name in files} <= names
    assert not any(name.startswith(('training/', 'test/')) for name in names)
