"""Tables of tasks and variants: what is run, in which order, and what is not run again."""

from argparse import Namespace
import json
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

from arguments import Parser
from collection_options import add_arguments, configs_of
import compare
from evaluation_options import as_asked, options_of, settings_of
import pytest
from settings import read_config
from table import read_result, Table
import yaml

from diffusion_policy_ros.policy.config import PolicyConfig
from diffusion_policy_ros.sim.tasks import data_set_name
from diffusion_policy_ros.typed import from_mapping, load_yaml, to_mapping

ROOT = Path(__file__).parents[1]
CAMERA = {'name': 'corner4', 'source_height': 64, 'source_width': 64, 'height': 48, 'width': 48}
BASE = {'policy': {'observation': {'cameras': [CAMERA]}, 'task': '', 'vision': {
            'base_width': 16, 'crop_height': 40, 'crop_width': 40, 'pooling': 'average'}},
        'training': {'episodes': 10, 'validation_episodes': 2, 'steps': 100}}
TABLE = {'base': 'base.yaml', 'episodes': 12, 'evaluation_episodes': 5,
         'cameras': ['arm', 'corner4'],
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
    """Record the scripts that are run; training and evaluation leave what the real ones do."""
    ran, data = [], {}

    def step(script, *arguments):
        words = [str(word) for word in arguments]
        ran.append((script, words))
        if script == 'collect_demos.py':
            parser = Parser()
            add_arguments(parser)
            config, = configs_of(parser.parse_args(words))
            data.update(task=config.task, seed_start=config.seed_start,
                        start_offset=config.start_offset,
                        ticks_after_success=config.ticks_after_success,
                        goal_offset=list(config.goal_offset))
        if script == 'train.py':
            folder = Path(words[words.index('-o') + 1])
            (folder / 'checkpoint').mkdir(parents=True, exist_ok=True)
            (folder / 'metrics.jsonl').write_text(str(folder))
            config = to_mapping(read_config(words[0], [word for word in words if '=' in word]))
            (folder / 'checkpoint/config.json').write_text(json.dumps({**config, 'data': data}))
        if script == 'evaluate.py':
            options = options_of(words)
            trained = json.loads((Path(words[0]) / 'config.json').read_text())
            config = as_asked(from_mapping(PolicyConfig, trained['policy'], ''), options)
            seeds = range(options.seed, options.seed + options.episodes)
            options.output.write_text(json.dumps({
                'n_success': 4, 'n_episodes': len(seeds), 'device': options.device,
                'trained': trained, **settings_of(config, config.task, seeds, *options.noise_seed,
                                                  options.blend, options.workers)}))

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


VARIANTS, TASKS = TABLE['variants'], TABLE['tasks']


def evaluated(*options):
    return {'variants': {**VARIANTS, 'abrupt': {'of': 'unet', 'evaluate': ['--blend', '0',
                                                                           *options]}}}


@pytest.mark.parametrize('change, words', [
    ({'evaluation_episodes': 6}, ('n_episodes is 5, expected 6',)),
    ({'variants': {'unet': {'set': ['training.seed=1']}}}, ('training.seed is 0, expected 1',)),
    ({'variants': {'unet': {'set': ['policy.noise.clip_sample=false']}}},
     ('policy.noise.clip_sample is True, expected False',)),
    (evaluated('--blend', '0.2'), ('abrupt.json: ', 'blend_s is 0.0, expected 0.2')),
    (evaluated('--sampler', 'ddpm'), ("sampler is 'ddim', expected 'ddpm'",)),
    (evaluated('--inference-steps', '20'), ('num_inference_steps is 16, expected 20',)),
    (evaluated('--timestep-spacing', 'trailing'),
     ("timestep_spacing is 'leading', expected 'trailing'",)),
    (evaluated('--action-steps', '2'), ('n_action_steps is 4, expected 2',)),
    (evaluated('--noise-seed', '3'), ('noise_seed is 0, expected 3',)),
    (evaluated('--seed', '7'), ("seeds is '0-4', expected '7-11'",)),
    (evaluated('--episodes', '4'), ('n_episodes is 5, expected 4',)),
    (evaluated('--workers', '1'), ('workers is 2, expected 1',)),
    (evaluated('--device', 'cuda'), ("device is 'cpu', expected 'cuda'",)),
    ({'collect': ['--start-offset', '0.05']},
     ('trained.data.start_offset is 0.0, expected 0.05',)),
    ({'collect': ['--ticks-after-success', '40']},
     ('trained.data.ticks_after_success is 10, expected 40',)),
    ({'collect': ['--goal-offset', '0', '0', '0.01']},
     ('trained.data.goal_offset is [0.0, 0.0, 0.0], expected [0.0, 0.0, 0.01]',)),
    ({'collect': ['--seed-start', '2000000']}, ('trained.data.seed_start is 1000000',)),
    ({'episodes': 11}, ('12 demonstrations were used, expected at most 11',)),
    ({'tasks': {**TASKS, 'reach-v3': {**TASKS['reach-v3'], 'cameras': ['arm']}}},
     ("the cameras ['corner4'] were used, expected some of ['arm']",)),
])
def test_a_result_of_another_table_is_refused(table, steps, change, words):
    run(table, '--tasks', 'reach-v3')
    steps.clear()
    table.write_text(yaml.safe_dump({**TABLE, **change}))
    with pytest.raises(SystemExit) as end:
        run(table, '--tasks', 'reach-v3')
    assert not steps and '\n' not in str(end.value)
    for word in (f'compare: {table.parent}/results/reach/', *words, 'move it away'):
        assert word in str(end.value)


@pytest.mark.parametrize('change', [
    {'episodes': 13}, {'cameras': ['corner4']}, evaluated('--threads', '3', '--video', '2'),
    {'tasks': {**TASKS, 'reach-v3': {**TASKS['reach-v3'], 'cameras': ['arm', 'corner4']}}},
])
def test_a_result_that_the_edited_table_would_give_again_is_kept(table, steps, change):
    run(table)
    steps.clear()
    table.write_text(yaml.safe_dump({**TABLE, **change}))
    run(table)
    assert not steps


@pytest.mark.parametrize('key, option, words', [
    ('start_offset', ['--start-offset', '0.05'], 'start_offset is 0.0, expected 0.05'),
    ('ticks_after_success', ['--ticks-after-success', '40'],
     'ticks_after_success is 10, expected 40'),
    ('goal_offset', ['--goal-offset', '0', '0.1', '0'],
     r'goal_offset is \[0.0, 0.0, 0.0\], expected \[0.0, 0.1, 0.0\]'),
])
def test_demonstrations_that_do_not_say_where_they_began_or_ended_are_of_the_defaults(
        table, steps, key, option, words):
    run(table, '--tasks', 'reach-v3', '--variants', 'unet')
    path = table.parent / 'results/reach/unet.json'
    found = json.loads(path.read_text())
    del found['trained']['data'][key], found['workers'], found['seeds']
    path.write_text(json.dumps(found))
    run(table, '--tasks', 'reach-v3', '--variants', 'unet')
    table.write_text(yaml.safe_dump({**TABLE, 'collect': option}))
    with pytest.raises(SystemExit, match=words):
        run(table, '--tasks', 'reach-v3', '--variants', 'unet')


@pytest.mark.parametrize('name, least', [
    ('crop', 14), ('optimizer', 8), ('tasks', 32), ('demos', 11), ('cameras', 2), ('holding', 1),
    ('aim', 1), ('denoising', 9), ('segments', 39), ('ablations', 19), ('transformer', 12)])
def test_the_repositorys_results_are_of_their_table(name, least):
    path = ROOT / f'config/training/{name}_table.yaml'
    table, found = from_mapping(Table, load_yaml(path), str(path)), 0
    for task in table.tasks:
        for result in (ROOT / 'results' / name / data_set_name(task)).glob('*.json'):
            if result.stem in table.variants:
                options = Namespace(table=path, output=Path('out'), overrides=[])
                training = compare.Training.of(table, task, result.stem, options)
                read_result(result, table, task, result.stem,
                            read_config(training.base, training.overrides))
                found += 1
    assert found >= least


@pytest.mark.parametrize('content, words', [
    ('', 'Expecting value'), ('[]', 'found list'), ('{}', 'n_success'),
    ('{"n_success": 4, "n_episodes": "five"}', 'n_episodes'),
    ('{"n_success": 4, "n_episodes": 5, "trained": [1]}', 'trained'),
])
def test_a_damaged_result_is_one_line(table, steps, content, words):
    path = table.parent / 'results/reach/unet.json'
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(SystemExit) as end:
        run(table, '--tasks', 'reach-v3')
    message = str(end.value)
    assert message.startswith(f'compare: {path}: ') and words in message and '\n' not in message


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
    ({}, ('--threads', '0'), ('--threads: found 0, expected at least 1',)),
    ({'cameras': ['front']}, (), ('table.yaml: collecting drawer-open-v3: ', "'front'")),
    ({'collect': ['--size', 'big']}, (), ('collecting drawer-open-v3: ', '--size', 'big')),
    (evaluated('--blend', 'nan'), (), ('table.yaml: variant abrupt: evaluate: ', '--blend')),
    (evaluated('--noise-seed', '0', '1'), (), ('variant abrupt', '[0, 1]', 'one seed')),
    (evaluated('--task', 'MT10'), (), ('variant abrupt', 'MT10', "the table's task")),
    (evaluated('--blond', '1'), (), ('variant abrupt', '--blond')),
    ({'variants': {**VARIANTS, 'a': {'of': 'unet', 'set': ['training.seed=1']}}}, (),
     ('table.yaml: variant a: ', "['training.seed=1'] beside of unet", 'expected neither')),
    ({'variants': {**VARIANTS, 'a': {'of': 'unet', 'base': 'wide.yaml'}}}, (),
     ("variant a: found base 'wide.yaml'", 'beside of unet')),
    ({'variants': {**VARIANTS, 'a': {'of': 'abrupt'}}}, (),
     ('variant a: of is abrupt, which is itself of unet', 'expected a variant that is trained')),
])
def test_a_wrong_table_is_one_line(table, steps, change, arguments, words):
    table.write_text(yaml.safe_dump({**TABLE, **change}))
    with pytest.raises(SystemExit) as end:
        run(table, *arguments)
    assert '\n' not in str(end.value) and not steps
    for word in words:
        assert word in str(end.value)


TRAINED_BY = {'denoising_table': 'tasks_table'}


def test_the_repositorys_tables_name_configurations_that_load_and_those_that_are_trained():
    folder = ROOT / 'config/training'
    tables = {path.stem: from_mapping(Table, load_yaml(path), str(path))
              for path in sorted(folder.glob('*_table.yaml'))}
    assert tables

    def training(table, task, name):
        options = Namespace(table=folder / f'{table}.yaml', output=Path('out'), overrides=[])
        found = compare.Training.of(tables[table], task, name, options)
        return (tables[table].collecting(task), read_config(found.base, found.overrides),
                found.folder)

    for key, table in tables.items():
        for task in table.tasks:
            for name, variant in table.variants.items():
                found = training(key, task, name)
                if variant.of not in (None, *table.variants):
                    assert found == training(TRAINED_BY[key], task, variant.of), (key, task)
