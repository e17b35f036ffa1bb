"""Choice of OpenGL, and what pictures look like."""

import os
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

from diffusion_policy_ros.sim import rendering
from diffusion_policy_ros.sim.arm import MetaWorldArm

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize('environ, installed, choice', [
    ({}, ('libOSMesa.so.8', 'libEGL.so.1'), 'osmesa'),
    ({}, ('libOSMesa.so.6',), 'osmesa'),
    ({}, ('libEGL.so.1',), 'egl'),
    ({'DISPLAY': ':0'}, ('libEGL.so.1',), 'egl'),
    ({'DISPLAY': ':0'}, (), 'glfw'),
    ({'MUJOCO_GL': 'EGL'}, ('libOSMesa.so.8', 'libEGL.so.1'), 'egl'),
    ({'MUJOCO_GL': 'glfw'}, ('libOSMesa.so.8',), 'glfw'),
])
def test_how_mujoco_draws_is_chosen(environ, installed, choice):
    assert rendering.choose_gl(environ, installed.__contains__) == (choice, None)


@pytest.mark.parametrize('environ, problem', [
    ({}, 'no screen, and neither libOSMesa.so.8 nor libEGL.so.1 can be loaded: '
         'type `apt install libosmesa6`'),
    ({'MUJOCO_GL': 'osmesa', 'DISPLAY': ':0'},
     'MUJOCO_GL is osmesa, but libOSMesa.so.8 cannot be loaded: type `apt install libosmesa6`'),
    ({'MUJOCO_GL': 'egl'},
     'MUJOCO_GL is egl, but libEGL.so.1 cannot be loaded: type `apt install libegl1`'),
])
def test_a_missing_library_is_named_with_what_to_type(environ, problem):
    assert rendering.choose_gl(environ, lambda library: False) == ('disabled', problem)


def _python(code, **environ):
    return subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT), **environ})


def test_without_the_library_the_arm_moves_and_a_picture_gives_one_clear_line(tmp_path):
    for library in ('libOSMesa.so.8', 'libOSMesa.so.6', 'libOSMesa.so'):
        (tmp_path / library).write_bytes(b'')  # found first, and no library
    result = _python(
        'from diffusion_policy_ros.sim.arm import MetaWorldArm\n'
        "arm = MetaWorldArm('reach-v3')\n"
        'arm.reset(seed=0)\n'
        'arm.step([0.0, 0.6, 0.2, 1.0])\n'
        "arm.image('arm')\n", MUJOCO_GL='osmesa', LD_LIBRARY_PATH=str(tmp_path))
    assert result.stderr.splitlines()[-1] == (
        'diffusion_policy_ros.sim.rendering.DisplayError: MUJOCO_GL is osmesa, but libOSMesa.so.8 '
        'cannot be loaded: type `apt install libosmesa6`')


def test_pictures_can_be_drawn_when_mujoco_was_imported_before():
    environ = dict.fromkeys(('MUJOCO_GL', 'PYOPENGL_PLATFORM'), '')
    result = _python(
        'import mujoco\n'
        'from diffusion_policy_ros.sim.arm import MetaWorldArm\n'
        "arm = MetaWorldArm('reach-v3')\n"
        'arm.reset(seed=0)\n'
        "print(arm.image('corner', 24, 32).std() > 10)\n", **environ)
    assert result.stdout == 'True\n', result.stderr


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="renderer 'pretty' is unknown, expected one of plain"):
        rendering.check_renderer('pretty')
    with pytest.raises(ValueError, match="camera 'front' is unknown, expected one of arm, wrist"):
        rendering.check_camera('front')


def test_settings_change_the_picture():
    pictures = {}
    for renderer in rendering.RENDERERS:
        arm = MetaWorldArm('drawer-open-v3', renderer=renderer)
        arm.reset(seed=0)
        pictures[renderer] = arm.image('corner', 96, 96).astype(int)
        arm.close()
    assert np.abs(pictures['plain'] - pictures['full']).mean() > 1


def test_a_picture_larger_than_the_models_buffer_can_be_drawn():
    arm = MetaWorldArm('reach-v3')
    arm.reset(seed=0)
    small, large = arm.image('topview', 30, 40), arm.image('topview', 600, 800)
    arm.close()
    assert large.shape == (600, 800, 3) and large.dtype == np.uint8
    blocks = large.reshape(30, 20, 40, 20, 3).mean(axis=(1, 3))
    assert np.abs(blocks - small).mean() < 12 < np.abs(blocks[::-1] - small).mean()


@pytest.mark.parametrize('task', ['door-open-v3', 'assembly-v3', 'pick-place-wall-v3'])
def test_what_is_outside_the_view_is_left_out_and_no_pixel_changes(task, monkeypatch):
    arm = MetaWorldArm(task)
    arm.reset(seed=1)
    for target in ([0.3, 0.8, 0.3], [-0.3, 0.5, 0.05]):
        for _ in range(20):
            arm.step([*target, 1.0])
        for camera in rendering.CAMERAS:
            number = arm.model.camera(rendering.CAMERAS[camera]).id
            hidden = rendering.outside_view(arm.model, arm.data, number, 2.0)
            picture = arm.image(camera, 64, 128).copy()
            with monkeypatch.context() as patch:
                patch.setattr(rendering, 'outside_view',
                              lambda model, *_: np.zeros(model.ngeom, bool))
                np.testing.assert_array_equal(arm.image(camera, 64, 128), picture)
            if camera in rendering.HAND_CAMERAS:
                assert hidden.sum() >= 9  # the arm's links but for those at the hand
    arm.close()


def test_nothing_is_left_out_where_it_may_throw_a_shadow_or_be_mirrored(monkeypatch):
    monkeypatch.setattr(rendering, 'outside_view', None)
    arm = MetaWorldArm('reach-v3', renderer='full')
    arm.reset(seed=1)
    assert arm.image('arm', 16, 16).shape == (16, 16, 3)
    arm.close()
