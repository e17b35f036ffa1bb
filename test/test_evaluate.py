"""Evaluation with the shipped checkpoint: success, files, videos, and what is refused."""

import csv
import json
from pathlib import Path

import cv2
import evaluate
import numpy as np
import pytest

from diffusion_policy_ros.data.only_writer import only_writer
from diffusion_policy_ros.policy.checkpoint import load_checkpoint
from diffusion_policy_ros.sim import rollout

CHECKPOINT = Path(__file__).parents[1] / 'config/checkpoints/drawer_open'


def test_the_shipped_checkpoint_opens_the_drawer():
    result = evaluate.evaluate(load_checkpoint(CHECKPOINT), 'drawer-open-v3', [200], workers=1)
    assert result['success'] == [True]
    assert (result['n_success'], result['n_episodes']) == (1, 1)
    assert 50 < result['steps'][0] < 300
    assert result['chunk_ms']['median'] > 0


@pytest.mark.slow
def test_batched_first_chunks_agree_with_single_ones():
    policy = load_checkpoint(CHECKPOINT)
    predict = evaluate.TimedPolicy(policy, noise_seed=0)
    runs = [evaluate.run(policy, 'drawer-open-v3', [200, 201], workers, predict)
            for workers in (1, 2)]
    for single, batched in zip(*runs, strict=True):
        assert single.success and batched.success
        np.testing.assert_allclose(batched.first_chunk.position, single.first_chunk.position,
                                   atol=1e-4)
        np.testing.assert_allclose(batched.first_chunk.gripper, single.first_chunk.gripper,
                                   atol=1e-4)


def test_evaluation_refuses_a_demonstrations_seed():
    with pytest.raises(ValueError, match='1000000'):
        evaluate.evaluate(load_checkpoint(CHECKPOINT), 'drawer-open-v3', [1_000_000])


@pytest.mark.parametrize('arguments, words', [
    (['absent'], ('absent', 'no such folder')),
    ([str(CHECKPOINT), '--task', 'drawer-opn-v3'], ("'drawer-opn-v3'", 'drawer-open-v3')),
    ([str(CHECKPOINT), '--seed', '999999', '--episodes', '2'], ('1000000',)),
    ([str(CHECKPOINT), '--device', 'gpu'], ("device 'gpu'",)),
    ([str(CHECKPOINT), '-o', '/proc/absent/result.json'], ('/proc/absent',)),
    ([str(CHECKPOINT), '-o', '/proc/result.json'], ('/proc/result.json', 'can be written to')),
])
def test_main_ends_with_one_line(arguments, words):
    with pytest.raises(SystemExit) as end:
        evaluate.main([*arguments, '--threads', '1'])
    message = str(end.value)
    assert message.startswith('evaluate: ')
    assert '\n' not in message
    for word in words:
        assert word in message


def test_latency_is_of_the_batch_size_that_came_most_often():
    predict = evaluate.TimedPolicy(None, noise_seed=0)
    predict.seconds.update({2: [0.4], 1: [0.1, 0.3, 0.2]})
    assert predict.latency() == {'median': 200.0, 'p99': pytest.approx(298.0), 'batch': 1, 'n': 3}


@pytest.fixture
def played(monkeypatch):
    """Return the noise seeds of what was evaluated, in no time; the first 4 is interrupted."""
    played = []

    def evaluation(policy, task, seeds, workers, noise_seed, blend_s, on_episode):
        played.append(noise_seed)
        if noise_seed == 4 and played.count(4) == 1:
            raise KeyboardInterrupt
        return {**evaluate.settings_of(policy.config, task, seeds, noise_seed, blend_s, workers),
                'success': [True] * len(seeds), 'steps': [7] * len(seeds),
                'n_success': len(seeds), 'n_episodes': len(seeds), 'wilson95': [0.2, 1.0],
                'median_steps': 7.0, 'chunk_ms': {'median': 1.0, 'p99': 2.0, 'batch': 1, 'n': 3}}

    monkeypatch.setattr(evaluate, 'evaluate', evaluation)
    return played


def test_an_interrupted_evaluation_goes_on(tmp_path, played, capsys):
    arguments = [str(CHECKPOINT), '--episodes', '1', '--noise-seed', '3', '4',
                 '-o', str(tmp_path / 'run.json')]
    with pytest.raises(SystemExit, match='interrupted; the same command goes on'):
        evaluate.main(arguments)
    evaluate.main(arguments)
    assert played == [3, 4, 4]
    assert f'{tmp_path}/run_drawer_open_3.json is there already' in capsys.readouterr().out


def test_only_a_result_of_the_same_settings_is_not_made_again(tmp_path, played):
    path = tmp_path / 'run.json'
    arguments = [str(CHECKPOINT), '--episodes', '2', '--threads', '1', '-o', str(path)]
    evaluate.main(arguments)
    evaluate.main(arguments)
    evaluate.main([*arguments, '--workers', '3'])  # of which two have an episode
    assert len(played) == 1
    for more in (['--workers', '1'], ['--threads', '2'], ['--inference-steps', '4'],
                 ['--blend', '0'], ['--seed', '1'], ['--action-steps', '2']):
        evaluate.main([*arguments, *more])
        evaluate.main(arguments)
        assert len(played) == 3, more
        del played[1:]
    older = json.loads(path.read_text())
    del older['threads']
    for found in (json.dumps(older), '[]', '{', ''):
        path.write_text(found)
        evaluate.main(arguments)
        assert len(played) == 2, found
        assert json.loads(path.read_text())['threads'] == 1
        del played[1:]


def test_two_evaluations_do_not_write_one_result(tmp_path, played):
    path = tmp_path / 'run.json'
    with only_writer(path), pytest.raises(SystemExit, match='is being written by another process'):
        evaluate.main([str(CHECKPOINT), '--episodes', '1', '-o', str(path)])
    assert played == [] and not path.exists()


def test_a_folder_that_disappeared_meanwhile_is_made_again(tmp_path):
    path = tmp_path / 'gone/run.json'
    evaluate.write(path, {'task': 'reach-v3', 'seeds': [5], 'noise_seed': 3, 'success': [True],
                          'steps': [7]})
    assert json.loads(path.read_text())['steps'] == [7]
    assert path.with_suffix('.csv').read_bytes() == (
        b'task,seed,noise_seed,success,steps\r\nreach-v3,5,3,1,7\r\n')


@pytest.mark.slow
def test_every_noise_seed_has_its_files_and_a_video(tmp_path):
    evaluate.main([str(CHECKPOINT), '--episodes', '1', '--seed', '200', '--noise-seed', '3', '4',
                   '--inference-steps', '4', '--workers', '1', '--video', '1',
                   '-o', str(tmp_path / 'run.json')])
    for noise_seed in (3, 4):
        path = tmp_path / f'run_drawer_open_{noise_seed}.json'
        result = json.loads(path.read_text())
        assert (result['noise_seed'], result['num_inference_steps']) == (noise_seed, 4)
        with path.with_suffix('.csv').open() as file:
            row, = csv.DictReader(file)
        assert row == {'task': 'drawer-open-v3', 'seed': '200', 'noise_seed': str(noise_seed),
                       'success': str(int(result['success'][0])),
                       'steps': str(result['steps'][0])}
        outcome = 'successes' if result['success'][0] else 'failures'
        film = cv2.VideoCapture(str(path.with_suffix('') / outcome / 'video.mp4'))
        pictures = int(film.get(cv2.CAP_PROP_FRAME_COUNT))
        assert pictures >= result['steps'][0] / 4  # 20 a second of 80 ticks
        _, picture = film.read()
        assert picture.shape[1] == 2 * 480 and picture.std() > 20  # the arm's camera and a view


@pytest.mark.parametrize('arguments, words', [
    (['--video', '1'], ('--video', '--output')),
    (['-o', str(CHECKPOINT)], (f'--output {CHECKPOINT}', '.json')),
    (['-o', 'result.csv'], ('--output result.csv', '.json')),
    (['--episodes', '0'], ('--episodes: found 0, expected at least 1',)),
    (['--workers', '0'], ('--workers: found 0, expected at least 1',)),
    (['--threads', '0'], ('--threads: found 0, expected at least 1',)),
    (['--noise-seed', '0', '-1'], ('--noise-seed: found -1, expected at least 0',)),
    (['--video', '-1'], ('--video: found -1, expected at least 0',)),
    (['--blend', 'nan'], ('--blend: found nan, expected 0 to 2',)),
    (['--blend', '-1'], ('--blend: found -1, expected 0 to 2',)),
    (['--blend', '1e30'], ('--blend: found 1e+30, expected 0 to 2',)),
    (['--blend', 'long'], ('--blend', "'long'")),
    (['--sampler', 'ddmp'], ('--sampler', 'ddmp', 'ddim')),
    (['--threds', '2'], ('--threds',)),
    (['--action-steps', '8'], ('n_obs_steps 2 - 1 + n_action_steps 8 is more than horizon 8',)),
    (['--inference-steps', '101'], ('101', 'at most num_train_timesteps 100')),
])
def test_options_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(SystemExit) as end:
        evaluate.main([str(CHECKPOINT), *arguments])
    assert '\n' not in str(end.value)
    for word in words:
        assert word in str(end.value)


def test_a_killed_environment_is_one_line(monkeypatch):
    make = rollout.AsyncVectorEnv

    def and_kill(*arguments, **settings):
        envs = make(*arguments, **settings)
        envs.processes[0].kill()
        return envs

    monkeypatch.setattr(rollout, 'AsyncVectorEnv', and_kill)
    with pytest.raises(SystemExit, match="evaluate: an environment's process died"):
        evaluate.main([str(CHECKPOINT), '--episodes', '2'])
