"""What a run says of itself, on the terminal and in summary.json."""

import json

import pytest

from diffusion_policy_ros.nodes.sim_summary import (
    episode_line, EpisodeResult, latency, progress_line, result_lines, Summary,
)


@pytest.fixture()
def summary():
    result = Summary('reach-v3', 'lockstep', 'checkpoints/reach', 'ab12', n_planned=10)
    result.episodes = [EpisodeResult(seed, seed != 7, 100, 2.0) for seed in range(10)]
    result.chunk_ms = [10.0, 20.0, 30.0]
    return result


def test_json_holds_what_readers_of_it_expect(summary, tmp_path):
    summary.write(tmp_path / 'summary.json')
    read = json.loads((tmp_path / 'summary.json').read_text())
    assert read['task'] == 'reach-v3'
    assert read['mode'] == 'lockstep'
    assert read['seeds'] == list(range(10))
    assert read['success'] == [True] * 7 + [False] + [True] * 2
    assert (read['n_success'], read['n_episodes']) == (9, 10)
    assert read['wilson95'] == pytest.approx([0.5958, 0.9821], abs=1e-4)
    assert read['chunk_ms'] == {'median': 20.0, 'p99': 29.8, 'n': 3}
    assert read['checkpoint_hash'] == 'ab12'
    assert read['versions']['mujoco'] == '3.3.0'
    assert [path.name for path in tmp_path.iterdir()] == ['summary.json']


def test_a_run_without_an_episode_is_written_too(tmp_path):
    summary = Summary('reach-v3', 'realtime', '', '', n_planned=3, problem='nothing on ee_pose')
    summary.write(tmp_path / 'summary.json')
    read = json.loads((tmp_path / 'summary.json').read_text())
    assert read['wilson95'] is None
    assert read['chunk_ms'] == {'median': None, 'p99': None, 'n': 0}
    assert read['problem'] == 'nothing on ee_pose'
    assert result_lines(summary) == []


def test_the_closing_lines(summary):
    assert result_lines(summary) == [
        'success 9/10 (Wilson 95 % 60-98 %)',
        'chunk latency 20.0 ms median, 29.8 ms p99 over 3 chunks']


def test_an_episode_is_one_line(summary):
    line = episode_line(8, summary, summary.episodes[7])
    assert line == ('episode  8/10  seed 7  failure after 100 ticks,  1.25 s of sim time,   2.0 s')


@pytest.mark.parametrize('ticks, bar', [(0, '.' * 20), (250, '#' * 10 + '.' * 10),
                                        (500, '#' * 20), (900, '#' * 20)])
def test_progress(summary, ticks, bar):
    assert f'[{bar}]' in progress_line(1, summary, 0, ticks, 500)


def test_latency_is_rounded_to_what_can_be_read():
    assert latency([1.23456] * 5) == {'median': 1.23, 'p99': 1.23, 'n': 5}
