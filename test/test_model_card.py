"""The model card: the shipped one follows from the results, and what it refuses."""

import json
from pathlib import Path
import shutil

import model_card
import pytest
import yaml

from diffusion_policy_ros.policy.checkpoint_config import checkpoint_hash

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / 'config/checkpoints/drawer_open'
RESULT = ROOT / 'results/drawer_open_100.json'


@pytest.fixture
def trained(tmp_path):
    """Return a folder as train.py leaves it, with the shipped checkpoint."""
    folder = tmp_path / 'trained'
    (folder / 'checkpoint').mkdir(parents=True)
    for name in ('config.yaml', 'model.safetensors'):
        shutil.copy(SHIPPED / name, folder / 'checkpoint')
    shutil.copy(SHIPPED / 'loss.png', folder)
    return folder


def run(trained, evaluation=RESULT, *arguments, output=None):
    """Return the card's text."""
    output = output or trained.parent / 'card'
    model_card.main([str(trained), '-e', str(evaluation), '-o', str(output),
                     *map(str, arguments)])
    return (output / 'README.md').read_text()


def refused(trained, *arguments, **options):
    """Return the line that a refused run ends with; it has written nothing."""
    with pytest.raises(SystemExit) as end:
        run(trained, *arguments, **options)
    assert not (trained.parent / 'card').exists()
    assert str(end.value).startswith('model_card: ') and '\n' not in str(end.value)
    return str(end.value)


def changed(folder, path, **values):
    """Write a result with other values, without those that are None; return its path."""
    found = {**json.loads(path.read_text()), **values}
    copy = folder / path.name
    copy.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
    return copy


def change_provenance(trained, edit):
    """Edit the provenance; return an evaluation of that checkpoint."""
    path = trained / 'checkpoint/config.yaml'
    values = yaml.safe_load(path.read_text())
    edit(values['provenance'])
    path.write_text(yaml.safe_dump(values))
    return changed(trained, RESULT, checkpoint_sha256=checkpoint_hash(path.parent))


def test_the_shipped_card_follows_from_the_shipped_results(trained):
    card = run(trained, RESULT, '-v', ROOT / 'results/drawer_open')
    assert card == (SHIPPED / 'README.md').read_text()
    assert {path.name for path in (trained.parent / 'card').iterdir()} == {
        'README.md', 'config.yaml', 'model.safetensors', 'loss.png'}


def test_the_median_of_an_even_number_lies_between_two(trained, tmp_path):
    variants = tmp_path / 'variants'
    variants.mkdir()
    changed(variants, ROOT / 'results/drawer_open/delta.json', steps=[500, 90, 10, 71, 20],
            success=[False, True, True, True, True], n_success=4, n_episodes=5)
    assert '| delta | 4/5 | 50.1-75.9 % | 45.5 | 504 |' in run(trained, RESULT, '-v', variants)


@pytest.mark.parametrize('values, words', [
    ({'checkpoint_sha256': 'other'}, 'evaluates another checkpoint'),
    ({'task': 'reach-v3'}, "task is 'reach-v3', expected 'drawer-open-v3'"),
    ({'sampler': 'ddpm'}, "sampler is 'ddpm', expected 'ddim'"),
    ({'num_inference_steps': 4}, 'num_inference_steps is 4, expected 8'),
    ({'timestep_spacing': 'trailing'}, "timestep_spacing is 'trailing', expected 'leading'"),
    ({'n_action_steps': 1}, 'n_action_steps is 1, expected 4'),
    ({'blend_s': 0.0}, 'blend_s is 0.0, expected 0.1'),
    ({'timestep_spacing': None}, 'timestep_spacing'),
    ({'seeds': 5}, 'seeds'),
])
def test_an_evaluation_otherwise_than_the_nodes_run_it_is_refused(trained, tmp_path, values,
                                                                  words):
    path = changed(tmp_path, RESULT, **values)
    line = refused(trained, path)
    assert line.startswith(f'model_card: {path}: ') and words in line


@pytest.mark.parametrize('content, words', [
    ('', 'Expecting value'), ('[]', 'found list, expected a JSON object'), ('{}', 'missing'),
])
def test_a_damaged_result_is_one_line_that_names_it(trained, tmp_path, content, words):
    path = tmp_path / 'variants/a.json'
    path.parent.mkdir()
    path.write_text(content)
    for line in (refused(trained, path), refused(trained, RESULT, '-v', path.parent)):
        assert line.startswith(f'model_card: {path}: ') and words in line


def test_a_variant_with_a_step_too_few_is_one_line(trained, tmp_path):
    path = changed(tmp_path, ROOT / 'results/drawer_open/delta.json', steps=[7])
    line = refused(trained, RESULT, '-v', tmp_path)
    assert line == f'model_card: {path}: found 1 steps, expected 50, one for each success'


def test_a_variant_of_another_task_is_refused(trained, tmp_path):
    path = changed(tmp_path, ROOT / 'results/drawer_open/delta.json', task='push-v3')
    line = refused(trained, RESULT, '-v', tmp_path)
    assert line == f"model_card: {path}: task is 'push-v3', expected 'drawer-open-v3'"


def test_other_demonstrations_of_a_variant_are_named(trained, tmp_path):
    variants = tmp_path / 'variants'
    variants.mkdir()
    data = {'episodes': 250, 'frames': 9, 'sha256': 'a', 'seed_start': 1000000}
    changed(variants, ROOT / 'results/drawer_open/delta.json', trained={'data': data})
    assert '| delta | ' in run(trained, RESULT, '-v', variants)
    changed(variants, ROOT / 'results/drawer_open/delta.json',
            trained={'data': {**data, 'start_offset': 0.05}})
    card = run(trained, RESULT, '-v', variants)
    assert '| delta (start_offset is 0.05, expected 0.0) | ' in card


def test_how_the_demonstrations_were_made_is_told(trained):
    evaluation = change_provenance(trained, lambda found: found['data'].update(
        start_offset=0.05, ticks_after_success=50, goal_offset=[0.0, 0.0, 0.045]))
    assert ('begun elsewhere, a standard deviation of 0.05 m an axis, '
            'going on for 50 ticks after success, '
            'aimed [0.0, 0.0, 0.045] m beside the goal, sha256') in run(trained, evaluation)


def test_data_that_the_expert_did_not_make_have_no_first_seed(trained):
    evaluation = change_provenance(trained, lambda found: found['data'].pop('seed_start'))
    assert '| demonstrations | 100 episodes, 9878 frames, sha256 `2a5175' in run(trained,
                                                                                 evaluation)


def test_weights_without_an_average_are_not_called_averaged(trained):
    evaluation = change_provenance(trained, lambda found: found['training'].update(ema_max=0.0))
    card = run(trained, evaluation)
    assert 'the last weights of one training run' in card and 'weight decay 1e-06, seed 0' in card


@pytest.mark.parametrize('edit, words', [
    (lambda found: found['data'].pop('frames'), 'provenance.data: missing'),
    (lambda found: found.pop('training'), 'provenance: missing'),
    (lambda found: found.clear(), 'provenance: missing'),
])
def test_a_provenance_that_lacks_something_is_one_line(trained, edit, words):
    assert f'config.yaml: {words}' in refused(trained, change_provenance(trained, edit))


def test_an_output_that_cannot_be_written_is_one_line(trained):
    line = refused(trained, output=Path('/proc/card'))
    assert '/proc/card/README.md: ' in line and 'can be written to' in line


def test_a_training_without_its_curve_is_one_line(trained):
    (trained / 'loss.png').unlink()
    with pytest.raises(SystemExit, match='^model_card: .*loss.png'):
        run(trained)
    assert not [*(trained.parent / 'card').iterdir()]
