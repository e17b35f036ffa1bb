"""Tables and plots of results: their numbers, and the files that are refused."""

import json
from pathlib import Path

import cv2
import pytest
import report

from diffusion_policy_ros.statistics import wilson_interval

ROOT = Path(__file__).parents[1]
END = '<!-- end report -->'


def write_result(path, task, n_success, n_episodes, **values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({
        'task': task, 'success': [i < n_success for i in range(n_episodes)],
        'n_success': n_success, 'n_episodes': n_episodes,
        'wilson95': wilson_interval(n_success, n_episodes), 'wall_s': 1.0, **values}))
    return path


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def results(tmp_path):
    """Return a folder with the table `tasks`: a gap in a column of one of two tasks."""
    folder = tmp_path / 'results'
    write_result(folder / 'tasks/reach/unet.json', 'reach-v3', 48, 50)
    write_result(folder / 'tasks/push/unet.json', 'push-v3', 5, 10)
    write_result(folder / 'tasks/push/large_net.json', 'push-v3', 0, 10)
    return folder


@pytest.fixture
def document(tmp_path):
    path = tmp_path / 'docs/results.md'
    path.parent.mkdir()
    path.write_text(f'# Results\n\n<!-- report: tasks -->\nold\n{END}\nafter')
    return path


def run(document, results, *options):
    report.main([str(document), '-r', str(results), *options])
    return document.read_text()


def refused(document, results, *options):
    """Return the line that a refused run ends with."""
    before = document.read_bytes()
    with pytest.raises(SystemExit) as end:
        report.main([str(document), '-r', str(results), *options])
    assert document.read_bytes() == before
    assert not (document.parent / 'images').exists()
    assert '\n' not in end.value.code
    return end.value.code


def test_a_block_holds_counts_intervals_and_means(results, document):
    assert run(document, results) == f"""# Results

<!-- report: tasks -->

| task | large net | unet |
|---|---|---|
| push-v3 | 0/10 (0.0-27.8 %) | 5/10 (23.7-76.3 %) |
| reach-v3 | - | 48/50 (86.5-98.9 %) |
| mean; pooled | - | 73.0 %; 53/60 (77.8-94.2 %) |

![results tasks](images/results_tasks.png)

{END}
after"""
    assert cv2.imread(str(document.parent / 'images/results_tasks.png')).std() > 10


def test_tasks_that_no_variant_has_all_of_have_no_mean(results):
    (results / 'tasks/reach/unet.json').rename(results / 'tasks/reach/wide.json')
    *_, last = report.markdown(report.read_results(results / 'tasks')).splitlines()
    assert last.startswith('| reach-v3 | - |')


def test_a_folder_of_files_is_one_task_with_no_mean(results, document):
    document.write_text(f'<!-- report: one_task -->\n{END}\n')
    write_result(results / 'one_task/wrist.json', 'push-v3', 10, 10)
    assert run(document, results) == f"""<!-- report: one_task -->

| task | wrist |
|---|---|
| push-v3 | 10/10 (72.2-100.0 %) |

![results one task](images/results_one_task.png)

{END}
"""


def test_more_variants_than_a_table_is_wide_are_rows(results):
    for number, name in enumerate('abcde'):
        write_result(results / f'wide/push/{name}.json', 'push-v3', number, 10)
    write_result(results / 'wide/reach/a.json', 'reach-v3', 10, 10)
    lines = report.markdown(report.read_results(results / 'wide')).splitlines()
    assert lines[0] == '| variant | push-v3 | reach-v3 | mean; pooled |'
    assert [line.split(' | ')[0] for line in lines[2:]] == ['| a', '| b', '| c', '| d', '| e']
    assert lines[2].startswith('| a | 0/10 (0.0-27.8 %) | 10/10 (72.2-100.0 %) | 50.0 %; 10/20')
    assert lines[3].split(' | ')[1:3] == ['1/10 (1.8-40.4 %)', '-']
    axes, = report.draw_success(report.read_results(results / 'wide')).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [*'abcde']
    assert [dots.get_label() for dots in axes.containers] == ['push-v3', 'reach-v3']


def test_the_shipped_results_agree_with_themselves_and_with_the_documents():
    row, = report.read_results(ROOT / 'results/drawer_open').values()
    assert 'default' in row
    report.main([*(str(ROOT / f'docs/{name}.md') for name in ('results', 'experiments')),
                 '-r', str(ROOT / 'results'), '--check'])


def test_a_second_run_changes_nothing_and_check_writes_nothing(results, document):
    assert refused(document, results, '--check') == f'report: {document}: out of date'
    first = run(document, results)
    image = document.parent / 'images/results_tasks.png'
    pixels = image.read_bytes()
    assert run(document, results) == first and image.read_bytes() == pixels
    assert run(document, results, '--check') == first and image.read_bytes() == pixels
    image.unlink()
    write_result(results / 'tasks/push/large_net.json', 'push-v3', 1, 10)
    with pytest.raises(SystemExit, match='out of date'):
        run(document, results, '--check')
    assert document.read_text() == first and not image.exists()
    assert '1/10' in run(document, results)


def test_check_misses_a_picture(results, document):
    first, image = run(document, results), document.parent / 'images/results_tasks.png'
    image.unlink()
    with pytest.raises(SystemExit, match=f'^report: {image}: found no such picture, expected'):
        run(document, results, '--check')
    assert document.read_text() == first and not image.exists()


def test_images_go_elsewhere_and_line_ends_stay(results, document, tmp_path):
    document.write_bytes(f'a\r\n<!-- report: tasks -->\r\n{END}\r\nb\r\n'.encode())
    run(document, results, '-i', str(tmp_path / 'plots'))
    assert (tmp_path / 'plots/results_tasks.png').exists()
    text = document.read_bytes()
    assert b'](../plots/results_tasks.png)\n' in text
    assert text.startswith(b'a\r\n<!-- report: tasks -->\r\n') and text.endswith(b'\r\nb\r\n')


def test_dots_stand_at_the_rates_between_their_intervals(results):
    axes, = report.draw_success(report.read_results(results / 'tasks')).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ['push-v3', 'reach-v3']
    empty, full = axes.containers
    assert [empty.get_label(), full.get_label()] == ['large net', 'unet']
    dots, _, (bars,) = full
    assert dots.get_xdata() == pytest.approx([50, 96])
    assert dots.get_ydata() == pytest.approx([0.2, 1.2])
    assert empty[0].get_ydata() == pytest.approx([-0.2])
    assert [(round(bar[0, 0], 1), round(bar[1, 0], 1)) for bar in bars.get_segments()] == [
        (23.7, 76.3), (86.5, 98.9)]


def test_dots_of_one_task_are_a_row_a_variant(results):
    axes, = report.draw_success(report.read_results(results / 'tasks/push')).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ['large net', 'unet']
    (dots, *_), = axes.containers
    assert list(dots.get_xdata()) == [0, 50] and list(dots.get_ydata()) == [0, 1]


@pytest.fixture
def sweep(tmp_path):
    for kind, key, numbers in (('steps', 'num_inference_steps', (16, 4, 100)),
                               ('demos', 'trained_episodes', (10, 100))):
        for number in numbers:
            for task in ('reach', 'push'):
                write_result(tmp_path / f'{kind}/{task}/{kind}_{number}.json', f'{task}-v3',
                             min(number, 10), 10, checkpoint_sha256=task, **{key: number})
    return tmp_path


@pytest.mark.parametrize('kind, label, numbers, rates', [
    ('steps', 'denoising steps', [4, 16, 100], [40, 100, 100]),
    ('demos', 'demonstrations', [10, 100], [100, 100]),
])
def test_a_sweep_is_a_line_a_task_over_its_numbers(sweep, kind, label, numbers, rates):
    results = report.read_results(sweep / kind)
    header = report.markdown(results).splitlines()[0]
    assert header == f'| task / {label} | {" | ".join(map(str, numbers))} |'
    axes, = report.draw_success(results).axes
    assert axes.get_xscale() == 'log' and axes.get_xlabel() == label
    assert not axes.get_xticks(minor=True).size
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [*map(str, numbers)]
    assert [line.get_label() for line in axes.containers] == ['push-v3', 'reach-v3']
    for line, _, (bars,) in axes.containers:
        assert line.get_xdata() == pytest.approx(numbers, rel=0.06)
        assert line.get_ydata() == pytest.approx(rates)
        assert line.get_linestyle() == '-'
        assert bars.get_segments()[-1][:, 1] == pytest.approx([72.25, 100], abs=0.01)


def test_other_variants_beside_make_it_no_sweep(sweep):
    write_result(sweep / 'steps/push/unet.json', 'push-v3', 5, 10)
    results = report.read_results(sweep / 'steps')
    header = report.markdown(results).splitlines()[0]
    assert header == '| task | steps 4 | steps 16 | steps 100 | unet |'
    assert report.draw_success(results).axes[0].get_xscale() == 'linear'


def test_learning_curves_are_drawn_where_metrics_lie_beside(results, document):
    rows = [{'step': 1, 'loss': 1.0}, {'step': 20, 'validation_loss': 9.0, 'action_error_mm': 9},
            {'step': 10, 'validation_loss': 0.5, 'action_error_mm': 8.0},
            {'step': 20, 'validation_loss': 0.25, 'action_error_mm': 4},
            {'step': 20, 'success': 1}]
    path = results / 'tasks/push/large_net.metrics.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    text = run(document, results)
    assert '\n![results tasks curves](images/results_tasks_curves.png)\n' in text
    assert (document.parent / 'images/results_tasks_curves.png').exists()
    axes, = report.draw_curves(report.read_curves(results / 'tasks')).axes
    line, = axes.lines
    assert line.get_label() == 'push/large net'
    curves = {name: [] for name in ('push/large', 'push/small', 'reach/small')}
    first, second, third = report.draw_curves(curves).axes[0].lines
    assert first.get_color() == second.get_color() != third.get_color()
    assert first.get_linestyle() != second.get_linestyle() == third.get_linestyle()
    assert list(line.get_xdata()) == [10, 20] and list(line.get_ydata()) == [8, 4]
    path.write_text('{"step": 1}\n{"step"')
    (document.parent / 'images/results_tasks.png').unlink()
    with pytest.raises(SystemExit, match=f'^report: {path}: line 2: '):
        run(document, results)
    assert document.read_text() == text
    assert not (document.parent / 'images/results_tasks.png').exists()


@pytest.mark.parametrize('values, message', [
    ({'n_success': 6}, 'success holds 5/10, not 6/10'),
    ({'n_episodes': 11}, 'success holds 5/10, not 5/11'),
    ({'wilson95': [0.236593, 0.763410]}, 'wilson95 is'),
    ({'wilson95': [float('nan'), 0.763407]}, 'wilson95 is'),
    ({'success': [], 'n_success': 0, 'n_episodes': 0}, '0 successes in 0 episodes'),
    ({'success': ['yes'] * 10}, '"success"'),
    ({'task': 'pull-v3'}, "task 'pull-v3' is none of the 50"),
    ({'task': 'hammer-v3'}, 'holds hammer-v3, expected in a folder hammer'),
])
def test_a_result_that_contradicts_itself_is_one_line(results, document, values, message):
    path = results / 'tasks/push/unet.json'
    change(path, **values)
    line = refused(document, results)
    assert line.startswith(f'report: {path}: ') and message in line


def test_the_interval_may_be_rounded(results):
    change(results / 'tasks/push/unet.json', wilson95=[0.236593, 0.763407])
    assert report.read_results(results / 'tasks')['push-v3']['unet'].n_success == 5


@pytest.mark.parametrize('content', [b'{"task": ', b'', b'\xff', b'[1]'])
def test_a_broken_file_is_one_line(results, document, content):
    path = results / 'tasks/push/unet.json'
    path.write_bytes(content)
    assert refused(document, results).startswith(f'report: {path}: ')


def test_a_result_is_there_once(results, document):
    path = write_result(results / 'tasks/unet.json', 'push-v3', 1, 2)
    line = refused(document, results)
    assert 'the second unet of push-v3' in line
    path.unlink()
    run(document, results)


@pytest.mark.parametrize('name, values, message', [
    ('steps/push/steps_16', {'num_inference_steps': 8}, 'num_inference_steps is 8, expected 16'),
    ('demos/push/demos_10', {'trained_episodes': 9}, 'trained_episodes is 9, expected 10'),
    ('steps/push/steps_4', {'checkpoint_sha256': 'other'}, 'evaluates another checkpoint'),
])
def test_a_sweep_of_something_else_is_refused(sweep, name, values, message):
    folder = sweep / name.split('/')[0]
    report.read_results(folder)
    change(sweep / f'{name}.json', **values)
    with pytest.raises(ValueError, match=f'{name}.json: {message}'):
        report.read_results(folder)


@pytest.mark.parametrize('text, message', [
    ('<!-- report: tasks -->\n', '<!-- report: tasks --> has no <!-- end report -->'),
    (f'<!-- report: push -->\n<!-- report: tasks -->\n{END}\n', 'report: push --> has no'),
    (f'<!-- report: tasks -->\n{END}\n{END}\n', '1 blocks'),
    (f'<!-- report tasks -->\n{END}\n', '0 blocks'),
    ('text\n', '0 blocks'),
    (f'<!-- report: tasks -->\n{END}\n<!-- report: other -->\n{END}\n', 'table other: there are'),
])
def test_markers_that_do_not_pair_and_unknown_tables_are_one_line(results, document, text,
                                                                  message):
    document.write_text(text)
    line = refused(document, results)
    assert line.startswith(f'report: {document}: ') and message in line


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match='^report: .*absent.md'):
        report.main([str(tmp_path / 'absent.md')])
