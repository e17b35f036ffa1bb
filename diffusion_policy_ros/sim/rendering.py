"""
Pictures of a MuJoCo model without a screen, upright, under named settings.

Where MUJOCO_GL is not set, OSMesa is taken if it is installed, even beside a GPU, so that every
machine draws the same pictures; then EGL, then a display. MUJOCO_GL=egl asks for the GPU. The
modules here import this one before mujoco, whose own import fails obscurely where MUJOCO_GL names
a missing library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import ctypes
from dataclasses import dataclass
import importlib
import os

import numpy as np

CAMERAS = {
    'arm': 'behindGripper',
    'wrist': 'gripperPOV',
    'corner': 'corner',
    'corner2': 'corner2',
    'corner3': 'corner3',
    'corner4': 'corner4',
    'topview': 'topview',
}
HAND_CAMERAS = ('arm', 'wrist')  # they ride on the hand
ROLLED_CAMERAS = ('corner', 'corner2', 'corner3', 'corner4')  # by 180 degrees, as MetaWorld ships

LIBRARIES = {'osmesa': ('libOSMesa.so.8', 'libOSMesa.so.6', 'libOSMesa.so'),
             'egl': ('libEGL.so.1', 'libEGL.so')}
REMEDY = {'osmesa': 'apt install libosmesa6', 'egl': 'apt install libegl1'}


@dataclass(frozen=True)
class PictureSettings:
    """
    What a picture's look and cost depend on.

    Attributes:
        shadows: draw shadows.
        reflections: draw what shiny materials mirror.
        multisampling: smooth edges.
    """

    shadows: bool
    reflections: bool
    multisampling: bool


HIDDEN_GROUP = 5  # of geoms, which MuJoCo leaves out unless asked
RENDERERS = {
    'plain': PictureSettings(shadows=False, reflections=False, multisampling=False),
    'full': PictureSettings(shadows=True, reflections=True, multisampling=True),
}


class DisplayError(RuntimeError):
    """Pictures cannot be drawn on this machine; the message says what to type."""


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def choose_gl(environ: Mapping[str, str],
              loads: Callable[[str], bool] = _loads) -> tuple[str, str | None]:
    """
    Choose how mujoco draws.

    Args:
        environ: environment variables; MUJOCO_GL and DISPLAY are looked at.
        loads: tells whether a shared library can be loaded.

    Returns:
        A value for MUJOCO_GL, and None or one line that says why nothing can be drawn.
    """
    def installed(name: str) -> bool:
        return any(loads(library) for library in LIBRARIES[name])

    asked = environ.get('MUJOCO_GL', '').strip().lower()
    if asked in LIBRARIES:
        if installed(asked):
            return asked, None
        return 'disabled', (f'MUJOCO_GL is {asked}, but {LIBRARIES[asked][0]} cannot be loaded: '
                            f'type `{REMEDY[asked]}`')
    if asked in ('disable', 'disabled', 'off', 'false', '0'):
        return asked, f'MUJOCO_GL is {asked}, expected osmesa or egl to draw pictures'
    if asked:
        return asked, None
    for name in LIBRARIES:
        if installed(name):
            return name, None
    if environ.get('DISPLAY'):
        return 'glfw', None
    return 'disabled', (f'no screen, and neither {LIBRARIES["osmesa"][0]} nor '
                        f'{LIBRARIES["egl"][0]} can be loaded: type `{REMEDY["osmesa"]}`')


_GL, _PROBLEM = choose_gl(os.environ)
os.environ['MUJOCO_GL'] = _GL

import mujoco  # noqa: E402, I100  it reads MUJOCO_GL

if _PROBLEM is None and _GL in LIBRARIES:
    # Someone else may have imported mujoco before, when the variable was not set.
    mujoco.gl_context.GLContext = importlib.import_module(f'mujoco.{_GL}').GLContext


def check_camera(name: str) -> str:
    """
    Return a camera's name.

    Raises:
        ValueError: when there is no such camera.
    """
    if name not in CAMERAS:
        raise ValueError(f'camera {name!r} is unknown, expected one of {", ".join(CAMERAS)}')
    return name


def check_renderer(name: str) -> str:
    """
    Return a renderer's name.

    Raises:
        ValueError: when there is no such renderer.
    """
    if name not in RENDERERS:
        raise ValueError(f'renderer {name!r} is unknown, expected one of {", ".join(RENDERERS)}')
    return name


def outside_view(model: mujoco.MjModel, data: mujoco.MjData, camera: int,
                 aspect: float) -> np.ndarray:
    """
    Return which geoms lie wholly outside what a camera sees.

    Without a GPU a picture's time goes into vertices, of which a camera on the hand sees less than
    half: the arm's other links are behind it.

    Args:
        model: the model.
        data: its state.
        camera: number of the camera.
        aspect: the picture's width by its height.

    Returns:
        (n_geoms,) bool; a geom that is nearly in view is not among them.
    """
    y = np.tan(np.deg2rad(model.cam_fovy[camera]) / 2)
    x = y * aspect
    # Outward normals of the view's four sides and of its apex; the camera looks along its -z.
    normals = np.array([[1, 0, x], [-1, 0, x], [0, 1, y], [0, -1, y], [0, 0, 1]])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    normals = normals @ data.cam_xmat[camera].reshape(3, 3).T
    axes = data.geom_xmat.reshape(-1, 3, 3)
    centres = data.geom_xpos + np.einsum('gij,gj->gi', axes, model.geom_aabb[:, :3])
    reach = np.einsum('ngj,gj->gn', np.abs(np.einsum('ni,gij->ngj', normals, axes)),
                      model.geom_aabb[:, 3:])
    outside = (centres - data.cam_xpos[camera]) @ normals.T > reach + 1e-4
    return outside.any(axis=1) & (model.geom_rbound > 0)  # a plane has no bounds


class Pictures:
    """
    Draws one model's cameras; each picture size has its own OpenGL context, made when first used.

    A context belongs to the process and thread that drew its first picture.

    Args:
        model: the model; its materials and lights are changed to the settings.
        renderer: name of the settings, one of `RENDERERS`.
    """

    def __init__(self, model: mujoco.MjModel, renderer: str = 'plain') -> None:
        settings = RENDERERS[check_renderer(renderer)]
        if not settings.shadows:
            model.light_castshadow[:] = 0
        if not settings.reflections:
            model.mat_reflectance[:] = 0
        if not settings.multisampling:
            model.vis.quality.offsamples = 0
        self._model = model
        # What a camera cannot see may still throw a shadow on, or be mirrored in, what it can.
        self._culls = not (settings.shadows or settings.reflections)
        self._groups = model.geom_group.copy()
        self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}

    def draw(self, data: mujoco.MjData, camera: str, height: int, width: int) -> np.ndarray:
        """
        Return what a camera sees.

        Returns:
            (height, width, 3) uint8 RGB, upright.

        Raises:
            ValueError: when there is no such camera.
            DisplayError: when this machine cannot draw.
        """
        renderer = self._renderer(height, width)
        name = CAMERAS[check_camera(camera)]
        if self._culls:
            hidden = outside_view(self._model, data, self._model.camera(name).id, width / height)
            self._model.geom_group[:] = np.where(hidden, HIDDEN_GROUP, self._groups)
        renderer.update_scene(data, camera=name)
        self._model.geom_group[:] = self._groups
        picture = renderer.render()
        if camera in ROLLED_CAMERAS:
            picture = np.ascontiguousarray(picture[::-1, ::-1])
        return picture

    def close(self) -> None:
        """Free the OpenGL contexts."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def _renderer(self, height: int, width: int) -> mujoco.Renderer:
        if (height, width) not in self._renderers:
            if _PROBLEM is not None:
                raise DisplayError(_PROBLEM)
            buffer = self._model.vis.global_
            buffer.offheight = max(buffer.offheight, height)
            buffer.offwidth = max(buffer.offwidth, width)
            try:
                renderer = mujoco.Renderer(self._model, height, width)
            except (RuntimeError, ImportError, AttributeError, mujoco.FatalError) as error:
                raise DisplayError(f'MUJOCO_GL={_GL} gives no OpenGL context '
                                   f'({" ".join(str(error).split())}): type `{REMEDY["osmesa"]}` '
                                   'and set MUJOCO_GL=osmesa') from error
            self._renderers[height, width] = renderer
        return self._renderers[height, width]
