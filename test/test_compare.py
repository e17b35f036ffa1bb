"""Tables of tasks and variants: what is run, in which order, and what is not run again."""

import json
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

import compare
import pytest
from settings import read_config
import yaml

from diffusion_policy_ros.typed import from_mapping, load_yaml, to_mapping

BASE = {'policy': {'observation': {'cameras': []}, 'task': ''},
        'training': {'episodes': 10, 'steps': 100}}
TABLE = {'base': 'base.yaml', 'episodes': 12, 'evaluation_episodes': 5,
         'tasks': {'reach-v3': {'cameras': ['corner4'], 'set': ['policy.dt_s=0.05']},
                   'drawer-open-v3': {}},
         'variants': {'unet': {}, 'wide': {'base': 'wide.yaml', 'set': ['training.seed=1']},
                      'abrupt': {'of': 'unet', 'evaluate': ['--blend', '0.0']}}}


@pytest.fixture
def table(tmp_path):
    (tmp_path / 'table.yaml').write_text(yaml.safe_dump(TABLE, sort_keys=False))
    for name in ('base', 'wide'):
        (tmp_path / f'{name}.yaml').write_text(yaml.safe_dump(BASE))
    return tmp_path / 'table.yaml'


@pytest.fixture
def steps(monkeypatch):
    """Record the scripts that are run; an evaluation leaves what was trained as its result."""
    ran = []

    def step(script, *arguments):
        words = [str(word) for word in arguments]
        ran.append((script, words))
        if script == 'train.py':
            folder = Path(words[words.index('-o') + 1])
            (folder / 'checkpoint').mkdir(parents=True, exist_ok=True)
            (folder / 'metrics.jsonl').write_text(str(folder))
            config = to_mapping(read_config(words[0], [word for word in words if '=' in word]))
            (folder / 'checkpoint/config.json').write_text(json.dumps(config))
        if script == 'evaluate.py':
            path = Path(words[words.index('-o') + 1])
            path.write_text(json.dumps({
                'n_success': 4, 'n_episodes': 5,
                'trained': json.loads((Path(words[0]) / 'config.json').read_text())}))

    monkeypatch.setattr(compare, 'step', step)
    return ran


def run(table, *arguments):
    folder = table.parent
    compare.main([str(table), '-d', str(folder / 'data'), '-o', str(folder / 'out'),
                  '-r', str(folder / 'results'), *arguments])


def test_every_variant_is_collected_for_trained_and_evaluated(table, steps, capsys):
    run(table)
    assert [script for script, _ in steps] == 6 * ['collect_demos.py', 'train.py', 'evaluate.py']
    collected, trained, evaluated = (words for _, words in steps[:3])
    assert collected[:6] == ['--task', 'reach-v3', '--episodes', '12', '--cameras', 'corner4']
    assert trained[0] == str(table.parent / 'base.yaml')
    assert [word for word in trained if '=' in word] == ['policy.task=reach-v3',
                                                         'policy.dt_s=0.05']
    assert evaluated[0] == str(table.parent / 'out/reach/base/unet/checkpoint')
    assert evaluated[1:3] == ['--episodes', '5']
    assert 'reach-v3, unet: 4/5' in capsys.readouterr().out
    curves = sorted(path.name for path in table.parent.glob('results/reach/*.metrics.jsonl'))
    assert curves == ['unet.metrics.jsonl', 'wide.metrics.jsonl']
    wide = steps[3 * 3 + 1][1]
    assert wide[0] == str(table.parent / 'wide.yaml') and 'training.seed=1' in wide
    assert wide[wide.index('-o') + 1] == str(table.parent / 'out/drawer_open/wide/wide')
    abrupt = steps[4 * 3 + 2][1]
    assert abrupt[0] == str(table.parent / 'out/reach/base/unet/checkpoint')
    assert abrupt[abrupt.index('--blend') + 1] == '0.0'


def test_what_is_there_is_not_run_again(table, steps):
    run(table, '--tasks', 'reach-v3')
    n_first = len(steps)
    run(table)
    again = [words[words.index('--task') + 1] for script, words in steps[n_first:]
             if script == 'collect_demos.py']
    assert n_first == 9 and again == 3 * ['drawer-open-v3']


@pytest.mark.parametrize('change, words', [
    ({'evaluation_episodes': 6}, ('reach/', 'n_episodes is 5, expected 6')),
    ({'variants': {'unet': {'set': ['training.seed=1']}}}, ('training.seed is 0, expected 1',)),
    ({'variants': {'unet': {'set': ['policy.noise.clip_sample=false']}}},
     ('policy.noise.clip_sample is True, expected False',)),
])
def test_a_result_of_another_table_is_refused(table, steps, change, words):
    run(table, '--tasks', 'reach-v3')
    table.write_text(yaml.safe_dump({**TABLE, **change}))
    with pytest.raises(SystemExit) as end:
        run(table, '--tasks', 'reach-v3')
    for word in words:
        assert word in str(end.value)


def test_a_result_that_does_not_say_what_was_trained_is_refused(table, steps):
    path = table.parent / 'results/reach/unet.json'
    path.parent.mkdir(parents=True)
    path.write_text('{"n_success": 4, "n_episodes": 5}')
    with pytest.raises(SystemExit, match=f'{path}: does not say what was trained'):
        run(table, '--tasks', 'reach-v3')


def test_a_checkpoint_of_another_table_is_evaluated_and_never_trained(table, steps):
    folder, sweep = table.parent, table.with_name('sweep.yaml')
    sweep.write_text(yaml.safe_dump({**TABLE, 'variants': {'steps_4': {'of': 'unet'}}},
                                    sort_keys=False))
    with pytest.raises(SystemExit, match='steps_4 is of unet, expected one of steps_4, or '
                       f'{folder}/out/reach/base/unet/checkpoint'):
        run(sweep)
    assert not steps
    run(table, '--variants', 'unet')
    run(sweep)
    assert len([*folder.glob('results/*/steps_4.json')]) == 2
    shutil.rmtree(folder / 'out')
    steps.clear()
    run(sweep)
    assert not steps


def test_a_signal_to_stop_reaches_the_script_once_and_its_end_is_awaited(tmp_path):
    scripts = tmp_path / 'scripts'
    shutil.copytree(Path(compare.__file__).parent, scripts)
    (scripts / 'collect_demos.py').write_text(
        'import pathlib, signal, sys, time\n'
        'got = []\n'
        'signal.signal(signal.SIGINT, lambda number, _: got.append(number))\n'
        'pathlib.Path("started").touch()\n'
        'while not got:\n    time.sleep(0.05)\n'
        'time.sleep(1)\n'
        'pathlib.Path("saved").write_text(str(len(got)))\n')
    (tmp_path / 'table.yaml').write_text(yaml.safe_dump(TABLE))
    (tmp_path / 'base.yaml').write_text(yaml.safe_dump(BASE))
    running = subprocess.Popen([sys.executable, scripts / 'compare.py', 'table.yaml', '-r', 'r'],
                               cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / 'started').exists() and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=60)[1] == 'compare: stopped; the same command goes on\n'
    assert running.returncode == 1 and (tmp_path / 'saved').read_text() == '1'


@pytest.mark.parametrize('change, arguments, words', [
    ({'tasks': {'reach': {}}}, (), ("'reach'", 'reach-v3')),
    ({'variants': {'a': {'sets': []}}}, (), ('sets',)),
    ({}, ('--variants', 'tall'), ('tall', 'abrupt, unet, wide')),
])
def test_a_wrong_table_is_one_line(table, steps, change, arguments, words):
    table.write_text(yaml.safe_dump({**TABLE, **change}))
    with pytest.raises(SystemExit) as end:
        run(table, *arguments)
    assert '\n' not in str(end.value) and not steps
    for word in words:
        assert word in str(end.value)


def test_the_repositorys_tables_name_configurations_that_load():
    folder = Path(__file__).parents[1] / 'config/training'
    tables = sorted(folder.glob('*_table.yaml'))
    assert tables
    for path in tables:
        table = from_mapping(compare.Table, load_yaml(path), str(path))
        for task in table.tasks.values():
            for variant in table.variants.values():
                read_config(folder / (variant.base or table.base), (*task.set, *variant.set))
