"""Seeds, starts, counts and writes the episodes of a run; the other nodes know nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import contextlib
from dataclasses import dataclass, field
import math
from pathlib import Path
import sys
import time

from rcl_interfaces.srv import SetParameters
import rclpy
from std_srvs.srv import Trigger

from diffusion_policy_ros.datatypes import NS_PER_S, to_ns
from diffusion_policy_ros.nodes import spin
from diffusion_policy_ros.nodes.bringup import new_folder
from diffusion_policy_ros.nodes.outcome import NONE
from diffusion_policy_ros.nodes.parameters import declare, refuse_unknown
from diffusion_policy_ros.nodes.real_time import keeps_up, largest_factor
from diffusion_policy_ros.nodes.recorder_client import lossy, RecorderClient
from diffusion_policy_ros.nodes.resources import find
from diffusion_policy_ros.nodes.self_spinning import AGAIN_S, SelfSpinning, Stopped
from diffusion_policy_ros.nodes.sim_summary import (
    episode_line, EpisodeResult, progress_line, result_lines, Summary,
)
from diffusion_policy_ros.nodes.sim_watch import Watch
from diffusion_policy_ros.policy.checkpoint_config import checkpoint_hash, read_config
from diffusion_policy_ros.sim.tasks import check_task, MAX_STEPS, VIEW_CAMERA
from diffusion_policy_ros.sim.video import Album, VIEW

BRIDGE, EXECUTOR = 'metaworld_bridge', 'chunk_executor'
ENDED_EARLY, INTERRUPTED = 3, 130  # exit codes
PROGRESS_S = 0.1
CLEAR_LINE = '\r\x1b[K'
SUMMARY = 'summary.json'
BRIDGE_GRACE_S = 5.0  # the bridge names a missing target first
RATE_TOLERANCE = 0.98
FAILURES_ALLOWED = 10  # of a recording, beside as many as there are episodes
TRIAL_S, TRIAL_CHUNKS, TRIAL_LIMIT_S = 3.0, 4, 30.0


@dataclass(frozen=True)
class RunnerConfig:
    """What is run, and where its results go."""

    task: str = field(default='drawer-open-v3', metadata={'description': 'MetaWorld task.'})
    checkpoint: str = field(default='checkpoints/drawer_open', metadata={
        'description': "Folder of the policy's checkpoint: a path, or one inside the package's "
                       'config folder.'})
    actor: str = field(default='policy', metadata={
        'description': "Who moves the arm: the policy, or MetaWorld's expert.",
        'choices': ('policy', 'expert')})
    mode: str = field(default='lockstep', metadata={
        'description': "The bridge's mode.", 'choices': ('lockstep', 'realtime')})
    real_time_factor: float = field(default=0.0, metadata={
        'description': 'Sim seconds a wall second, in realtime; 0 for the largest that this '
                       'machine holds, which is looked for first.', 'min': 0.0, 'max': 1000.0})
    episodes: int = field(default=10, metadata={
        'description': 'Episodes, one a seed.', 'min': 1})
    seed: int = field(default=0, metadata={
        'description': "The first episode's seed.", 'min': 0})
    noise_seed: int = field(default=0, metadata={
        'description': "Added to an episode's seed, the policy's seed of its noise.", 'min': 0})
    max_ticks: int = field(default=MAX_STEPS, metadata={
        'description': 'Ticks of 12.5 ms after which an episode counts as failed.', 'min': 1,
        'max': MAX_STEPS})
    record: bool = field(default=False, metadata={
        'description': 'Have demo_recorder keep each success as a bag, until there are '
                       '`episodes`; failures are discarded.'})
    renderer: str = field(default='plain', metadata={
        'description': "The bridge's, noted in each bag."})
    ticks_after_success: int = field(default=0, metadata={
        'description': "Ticks that an episode goes on after its success; the bridge's, too.",
        'min': 0})
    video: bool = field(default=True, metadata={
        'description': 'Write video.mp4 and contact_sheet.png.'})
    view_camera: str = field(default=VIEW_CAMERA, metadata={
        'description': "The bridge's outside view."})
    out: str = field(default='', metadata={
        'description': 'Folder for what the run writes; empty for out/sim/<time>.'})
    ready_limit_s: float = field(default=120.0, metadata={
        'description': 'Wall-clock limit for the other nodes to come up and answer.', 'unit': 's',
        'min': 0.1})
    wait_limit_s: float = field(default=30.0, metadata={
        'description': 'Wall-clock limit without a tick or, in realtime, a chunk, after which the '
                       'run ends and what is missing is named.', 'unit': 's', 'min': 0.1})

    def __post_init__(self) -> None:
        check_task(self.task)


class SimRunner(SelfSpinning):
    """Tells the run's story from top to bottom."""

    def __init__(self) -> None:
        super().__init__('sim_runner')
        self._config = config = declare(self, RunnerConfig)
        refuse_unknown(self)
        checkpoint = find(config.checkpoint) if config.actor == 'policy' else None
        self._policy = read_config(checkpoint) if checkpoint else None
        self._folder = Path(config.out or new_folder('sim'))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._summary = Summary(
            config.task, config.mode, str(checkpoint or ''),
            checkpoint_hash(checkpoint) if checkpoint else '', config.episodes)
        cameras = [camera.name for camera in self._policy.observation.cameras
                   ] if self._policy else []
        self._watch = Watch(self, [*cameras, VIEW] if config.video else [])
        self._album = None
        if config.video:
            self._album = Album(self._folder, config.task, config.view_camera)
        self._resets = [
            self.create_client(Trigger, f'{name}/reset')
            for name in (*(['policy'] if self._policy else []), EXECUTOR, BRIDGE)]
        # Its answer shows that the bridge has found the client above, whose call isn't repeated.
        self._bridge = self.create_client(SetParameters, f'{BRIDGE}/set_parameters')
        self._noise = self.create_client(SetParameters, 'policy/set_parameters')
        self._recorder = None
        if config.record:
            self._recorder = RecorderClient(self, config.ready_limit_s, config.renderer)
        self._next_progress_s = 0.0

    def run(self) -> int:
        """Run all episodes; return the exit code."""
        code = 0
        try:
            if self._config.mode == 'realtime':
                self._choose_factor()
            while self._left():
                self._play(len(self._summary.episodes) + 1)
        except Stopped:
            code, self._summary.problem = INTERRUPTED, 'stopped by a signal'
        except (TimeoutError, ValueError) as error:
            code, self._summary.problem = ENDED_EARLY, str(error)
        if self._summary.problem:
            say(f'the run ended early: {self._summary.problem}')
        self._close()
        return code

    def _left(self) -> bool:
        """Return whether there is an episode to run."""
        done, wanted = self._summary, self._config.episodes
        if self._recorder is None:
            return len(done.episodes) < wanted
        if len(done.episodes) - done.n_success > wanted + FAILURES_ALLOWED:
            raise ValueError(f'{len(done.episodes) - done.n_success} of {len(done.episodes)} '
                             'demonstrations have failed')
        return done.n_success < wanted

    def _play(self, number: int) -> None:
        """Run one episode to its end, and count it."""
        config, watch = self._config, self._watch
        seed = config.seed + number - 1
        self._begin(seed)
        start_s = time.monotonic()
        while not self._is_over():
            self.spin()
            self._check_alive()
            self._progress(lambda: progress_line(number, self._summary, seed, watch.ticks,
                                                 config.max_ticks))
        result = self._result(seed, time.monotonic() - start_s)
        if self._recorder is not None:
            self._end_recording(result)
        self._summary.episodes.append(result)
        self._summary.chunk_ms += watch.chunk_ms
        self._summary.write(self._folder / SUMMARY)
        say(episode_line(number, self._summary, result))
        if self._album is not None:
            self._album.add(f'episode {number}/{config.episodes}   seed {result.seed}',
                            result.success, watch.frames, watch.chunks)

    def _is_over(self) -> bool:
        outcome = self._watch.outcome
        return (outcome.success_tick != NONE or outcome.is_truncated
                or self._watch.ticks >= self._config.max_ticks)

    def _result(self, seed: int, wall_s: float) -> EpisodeResult:
        """
        Return how an episode ended that is over.

        Raises:
            TimeoutError: it was given up; names the topic that is missing.
            ValueError: the simulator failed.
        """
        config, watch = self._config, self._watch
        if watch.outcome.success_tick == NONE and config.mode == 'realtime':
            self.settle()  # a success may be told after the pose of its tick has arrived
        outcome = watch.outcome
        if outcome.is_failed:
            raise ValueError(f'{BRIDGE} gave up, for the reason that it has told')
        if outcome.is_truncated and outcome.success_tick == NONE and (
                outcome.last_tick < config.max_ticks):
            raise TimeoutError(self._missing())
        success = 0 <= outcome.success_tick <= config.max_ticks
        return EpisodeResult(seed, success, outcome.success_tick if success
                             else config.max_ticks, wall_s)

    def _end_recording(self, result: EpisodeResult) -> None:
        """Let an episode go on after its success, and save it; discard a failure."""
        config, watch = self._config, self._watch
        last = result.ticks + config.ticks_after_success
        while result.success and watch.ticks < last and watch.outcome.last_tick == NONE:
            self.spin()
            self._check_alive()
        said, *topics = self._recorder.end(result.success).split('; ')
        say(said)
        lost = lossy(topics, result.ticks)
        if lost:
            say(f'messages were lost: {"; ".join(lost)}')

    def _begin(self, seed: int) -> None:
        """Seed and reset all, the bridge last: it begins the episode."""
        config, watch = self._config, self._watch
        self.set_remote(self._bridge, config.ready_limit_s, task=config.task, seed=seed)
        if self._policy:
            self.set_remote(self._noise, config.ready_limit_s, seed=config.noise_seed + seed)
        if self._recorder is not None:
            self._recorder.start(seed)
        for client in self._resets:
            watch.forget()
            again_s = math.inf if client is self._resets[-1] else AGAIN_S
            answer = self.call(client, Trigger.Request(), config.ready_limit_s, again_s)
            if not answer.success:
                raise ValueError(f'{client.srv_name}: {answer.message}')
        self.wait(lambda: watch.outcome is not None and watch.newest_ns, config.wait_limit_s,
                  'ee_pose')

    def _close(self) -> None:
        for line in result_lines(self._summary):
            say(line)
        self._summary.write(self._folder / SUMMARY)
        pictures = self._album.close() if self._album is not None else []
        say(' '.join(['wrote', str(self._folder / SUMMARY), *map(str, pictures)]))

    def _progress(self, line: Callable[[], str]) -> None:
        if sys.stdout.isatty() and time.monotonic() > self._next_progress_s:
            self._next_progress_s = time.monotonic() + PROGRESS_S
            say(line(), end='')

    # Real time

    def _choose_factor(self) -> None:
        factor = self._config.real_time_factor
        if not factor:
            say('looking for the largest real-time factor that this machine holds; meanwhile the '
                'arm may starve and hold')
            factor = largest_factor(self._holds)
            if factor is None:
                raise TimeoutError('no real-time factor is held: the policy is too slow for '
                                   'realtime on this machine')
            say(f'real-time factor {factor:.3g}: the largest at which the bridge keeps its rate '
                'and no chunk is late')
        self.set_remote(self._bridge, self._config.ready_limit_s, real_time_factor=factor)
        self._summary.real_time_factor = factor

    def _holds(self, factor: float) -> bool:
        """Try a real-time factor for some seconds."""
        config, policy, watch = self._config, self._policy, self._watch
        self.set_remote(self._bridge, config.ready_limit_s, real_time_factor=factor)
        self._begin(config.seed)
        start_ns, first_ns = watch.newest_steady_ns, watch.newest_ns
        enough, seconds = False, 0.0
        while not enough and seconds < TRIAL_LIMIT_S:
            self.spin()
            self._check_alive()
            seconds = (time.monotonic_ns() - start_ns) / NS_PER_S
            enough = seconds > TRIAL_S and len(watch.chunks) > TRIAL_CHUNKS
            self._progress(lambda seconds=seconds: f'trying real-time factor {factor:.3g}  '
                           f'{seconds:4.1f} s')
        achieved = (watch.newest_ns - first_ns) / (watch.newest_steady_ns - start_ns)
        return enough and achieved >= RATE_TOLERANCE * factor and keeps_up(
            [chunk.stamp_ns for chunk in watch.chunks], watch.chunk_ages_ns,
            policy.chunk_period_ns, to_ns(policy.latency_budget_s), policy.dt_ns)

    # What is missing

    def _check_alive(self) -> None:
        """
        Notice when nothing goes on.

        Raises:
            TimeoutError: names the topic that is missing.
        """
        config, watch = self._config, self._watch
        now_ns = time.monotonic_ns()
        silence_s = (now_ns - watch.newest_steady_ns) / NS_PER_S
        if config.mode == 'lockstep':
            if silence_s > config.wait_limit_s + BRIDGE_GRACE_S:
                raise TimeoutError(self._missing())
        elif silence_s > config.wait_limit_s:
            raise TimeoutError(self._silent('ee_pose', BRIDGE))
        elif self._policy and now_ns - watch.newest_chunk_steady_ns > to_ns(config.wait_limit_s):
            raise TimeoutError(self._silent(*self._source()))

    def _missing(self) -> str:
        """Name the first topic on the way from tick to target that has nothing for this tick."""
        watch = self._watch
        topic, node = self._source()
        if not self.count_publishers('ee_pose'):
            topic, node = 'ee_pose', BRIDGE
        elif self._policy is None:
            if self.count_publishers(topic):
                topic, node = 'target_pose', EXECUTOR
        elif watch.chunks and (watch.newest_ns - watch.chunks[-1].stamp_ns
                               < self._policy.chunk_period_ns):
            topic, node = 'target_pose', EXECUTOR
        return self._silent(topic, node)

    def _source(self) -> tuple[str, str]:
        return ('ee_trajectory', 'policy') if self._policy else ('teleop_pose', 'expert')

    def _silent(self, topic: str, node: str) -> str:
        # DDS takes some 20 s to notice that a killed process is gone.
        state = 'does not answer' if self.count_publishers(topic) else 'is gone'
        return (f'nothing on {topic} for the tick at {self._watch.newest_ns / NS_PER_S:.4f} s '
                f'within {self._config.wait_limit_s:g} s: {node} {state}')


def say(line: str, end: str = '\n') -> None:
    """Print a line that stays, over the progress that does not."""
    with contextlib.suppress(OSError):  # the terminal was closed: the summary is still written
        print(f'{CLEAR_LINE if sys.stdout.isatty() else ""}{line}', end=end, flush=True)


def main(args: Sequence[str] | None = None) -> int:
    """Run the node."""
    spin.init(args)
    node = None
    try:
        node = SimRunner()
        return node.run()
    except ValueError as error:
        print(f'sim_runner: {error}', file=sys.stderr, flush=True)
        return 1
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()


if __name__ == '__main__':
    sys.exit(main())
