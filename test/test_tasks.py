"""Names of tasks and ranges of seeds."""

import pytest

from diffusion_policy_ros.sim import rendering  # noqa: F401  before metaworld
from diffusion_policy_ros.sim import tasks


def test_the_tasks_are_metaworlds():
    from metaworld.env_dict import ENV_CLS_MAP
    from metaworld.policies import ENV_POLICY_MAP

    assert len(tasks.TASKS) == 50
    assert set(tasks.TASKS) == set(ENV_CLS_MAP) == set(ENV_POLICY_MAP)


@pytest.mark.parametrize('name, message', [
    ('drawer-open', "task 'drawer-open' is none of the 50 MetaWorld tasks: "
                    'did you mean drawer-open-v3 or '),
    ('xyzzy', "task 'xyzzy' is none of the 50 MetaWorld tasks: expected one like assembly-v3"),
])
def test_an_unknown_task_is_refused_with_the_closest_names(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        tasks.check_task(name)
    assert '\n' not in str(caught.value)


def test_a_known_task_is_returned():
    assert tasks.check_task('drawer-open-v3') == 'drawer-open-v3'


def test_evaluation_and_collection_share_no_seed():
    first = tasks.FIRST_COLLECTION_SEED
    assert tasks.check_evaluation_seed(0) == 0
    assert tasks.check_evaluation_seed(first - 1) == first - 1
    assert tasks.check_collection_seed(first) == first
    for seed in (-1, first):
        with pytest.raises(ValueError, match=f'seed {seed} is no evaluation seed, expected 0 to'):
            tasks.check_evaluation_seed(seed)
    with pytest.raises(ValueError, match='seed 999999 belongs to the evaluation, expected at'):
        tasks.check_collection_seed(first - 1)


def test_the_task_sets_are_metaworlds():
    from metaworld import env_dict

    expected = {'MT10': env_dict.MT10_V3, 'MT50': env_dict.MT50_V3,
                'ML10-train': env_dict.ML10_V3['train'], 'ML10-test': env_dict.ML10_V3['test'],
                'ML45-train': env_dict.ML45_V3['train'], 'ML45-test': env_dict.ML45_V3['test']}
    assert {name: set(found) for name, found in tasks.TASK_SETS.items()} == {
        name: set(found) for name, found in expected.items()}


def test_sets_and_tasks_are_spelled_out_once_each():
    assert tasks.expand_tasks(['reach-v3', 'ML10-test', 'lever-pull-v3']) == (
        'reach-v3', 'drawer-open-v3', 'door-close-v3', 'shelf-place-v3', 'sweep-into-v3',
        'lever-pull-v3')
    with pytest.raises(ValueError, match="task 'MT11'"):
        tasks.expand_tasks(['MT11'])


def test_files_are_named_after_their_task():
    assert tasks.data_set_name('button-press-topdown-v3') == 'button_press_topdown'
