"""No command exceeds a limit, whatever the target; what is within them passes to the bit."""

from dataclasses import replace
import math

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from diffusion_policy_ros.control import rotation
from diffusion_policy_ros.control.limits import braking_speed, Limiter, Limits

UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])
LIMITS = Limits((-0.5, -0.4, 0.0), (0.5, 0.6, 0.8), max_speed=0.5, max_acceleration=2.0,
                max_angular_speed=1.5, max_angular_acceleration=6.0, max_start_jump=0.2,
                max_start_turn=1.7, start_speed=0.1, start_angular_speed=0.3,
                max_tracking_error=0.1, max_tracking_turn=1.0)
MIN_DT = 0.01
ROUNDING = 1e-6

coordinate = st.floats(-1.5, 1.5)
target = st.tuples(coordinate, coordinate, coordinate)
inside = st.tuples(st.floats(-0.5, 0.5), st.floats(-0.4, 0.6), st.floats(0.0, 0.8))
dt_s = st.floats(MIN_DT, 0.1)
turn = st.tuples(*[st.floats(-3.0, 3.0)] * 3).map(lambda v: rotation.exp(np.array(v)))


def limiter_at(position=(0.0, 0.1, 0.4), quaternion=UPRIGHT, limits=LIMITS, min_dt=MIN_DT):
    limiter = Limiter(limits, min_dt)
    limiter.reset(np.array(position, float), quaternion)
    return limiter


def test_the_longest_stop_is_of_the_axis_or_turn_that_takes_longest():
    assert LIMITS.longest_stop_s == 0.25
    assert replace(LIMITS, max_angular_acceleration=0.5).longest_stop_s == 3.0


class Watch:
    """Checks each step against the limits, with its own differences of the positions."""

    def __init__(self, limiter, limits=LIMITS):
        self.limiter, self.limits = limiter, limits
        self.position, self.quaternion = limiter.position, limiter.quaternion
        self.velocity, self.angular_velocity = np.zeros(3), np.zeros(3)

    def check(self, dt, max_speed=None):
        limits = self.limits
        position, quaternion = self.limiter.position, self.limiter.quaternion
        velocity = (position - self.position) / dt
        angular = rotation.difference(quaternion, self.quaternion) / dt
        assert np.all(np.abs(velocity) <= (max_speed or limits.max_speed) * (1 + ROUNDING))
        assert np.all(np.abs(velocity - self.velocity)
                      <= limits.max_acceleration * dt * (1 + ROUNDING) + 1e-9)
        assert np.all(position >= np.array(limits.workspace_min))
        assert np.all(position <= np.array(limits.workspace_max))
        assert np.linalg.norm(angular) <= limits.max_angular_speed * (1 + ROUNDING)
        assert (np.linalg.norm(angular - self.angular_velocity)
                <= limits.max_angular_acceleration * dt * (1 + ROUNDING) + 1e-6)
        assert abs(np.linalg.norm(quaternion) - 1) < 1e-12
        self.position, self.quaternion = position, quaternion
        self.velocity, self.angular_velocity = velocity, angular


# Whatever comes

@settings(max_examples=80, deadline=None)
@given(inside, st.lists(st.tuples(st.booleans(), target, turn, dt_s), max_size=40))
def test_no_sequence_exceeds_a_limit(start, steps):
    watch = Watch(limiter_at(start))
    for brakes, position, quaternion, dt in steps:
        if brakes:
            watch.limiter.brake(dt)
        else:
            watch.limiter.step(np.array(position), quaternion, dt)
        watch.check(dt)


@settings(max_examples=40, deadline=None)
@given(inside, st.lists(st.tuples(target, st.integers(1, 12)), max_size=12),
       st.sampled_from([MIN_DT, 0.0125, 0.02]))
def test_no_jumps_that_stay_for_a_while_exceed_a_limit(start, jumps, dt):
    """Targets that last give speed, and speed near a wall is where limits clash."""
    watch = Watch(limiter_at(start))
    for position, n in jumps:
        for _ in range(n):
            watch.limiter.step(np.array(position), UPRIGHT, dt)
            watch.check(dt)


@settings(max_examples=40, deadline=None)
@given(inside, st.tuples(*[st.floats(-0.5, 0.5)] * 3), st.lists(dt_s, min_size=20, max_size=60))
def test_a_target_that_runs_through_a_wall_is_left_in_time_to_brake(start, velocity, steps):
    watch = Watch(limiter_at(start))
    goal = np.array(start)
    for dt in steps:
        goal = goal + np.array(velocity) * dt
        watch.limiter.step(goal, UPRIGHT, dt)
        watch.check(dt)


@settings(max_examples=40, deadline=None)
@given(inside, st.lists(st.tuples(target, st.floats(1e-4, 0.2)), max_size=30))
def test_even_with_shorter_steps_workspace_and_speed_hold(start, steps):
    limiter = limiter_at(start)
    for position, dt in steps:
        before = limiter.position
        after, _, _ = limiter.step(np.array(position), UPRIGHT, dt)
        assert np.all(after >= np.array(LIMITS.workspace_min))
        assert np.all(after <= np.array(LIMITS.workspace_max))
        assert np.all(np.abs(after - before) <= LIMITS.max_speed * dt * (1 + ROUNDING) + 1e-12)


def test_braking_with_shorter_steps_ends_at_the_wall():
    limiter = limiter_at((-0.1, 0.1, 0.4))
    x = -0.1
    while limiter.position[0] < LIMITS.workspace_max[0] - 0.02:
        x += 0.5 * 0.02
        limiter.step(np.array([x, 0.1, 0.4]), UPRIGHT, 0.02)
    for _ in range(2000):
        position, _ = limiter.brake(0.0001)
        assert position[0] <= LIMITS.workspace_max[0]


@pytest.mark.parametrize('n_long', range(44, 60))
def test_steps_that_become_too_short_to_brake_in_time_still_end_at_the_wall(n_long):
    limiter = limiter_at((-0.1, 0.1, 0.4))
    x = -0.1
    for dt in [0.02] * n_long + [0.0005] * 1500:
        x += 0.5 * dt
        position, _, _ = limiter.step(np.array([x, 0.1, 0.4]), UPRIGHT, dt)
        assert position[0] <= LIMITS.workspace_max[0]
    assert position[0] == pytest.approx(LIMITS.workspace_max[0])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(target, st.sampled_from([math.inf, 0.1])), max_size=40))
def test_a_lower_speed_is_reached_by_braking(steps):
    watch = Watch(limiter_at())
    speed_now = LIMITS.max_speed
    for position, speed in steps:
        watch.limiter.step(np.array(position), UPRIGHT, 0.02, speed)
        braked = max(0.1, np.abs(watch.velocity).max() - LIMITS.max_acceleration * 0.02)
        speed_now = max(min(speed, LIMITS.max_speed), braked)
        watch.check(0.02, speed_now)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.3, 1.5]), turn), min_size=2, max_size=8))
def test_a_turn_to_a_lower_rate_keeps_the_angular_acceleration(stretches):
    limiter = limiter_at()
    watch = Watch(limiter)
    for rate, goal in stretches:
        for _ in range(12):
            limiter.step(limiter.position, goal, 0.02, angular_speed=rate)
            watch.check(0.02)


@pytest.mark.parametrize('acceleration', [1e6, 1e9, 1e12])
def test_no_acceleration_lifts_the_limit_of_speed(acceleration):
    limits = replace(LIMITS, max_acceleration=acceleration, max_angular_acceleration=acceleration)
    limiter = limiter_at(limits=limits)
    watch = Watch(limiter, limits)
    for x in (0.0, 0.3, -0.3, 0.3):
        limiter.step(np.array([x, 0.1, 0.4]), rotation.exp(np.array([x, 0.0, 0.0])), 0.02)
        watch.check(0.02)


def test_from_full_speed_a_lower_speed_is_reached_by_braking():
    limiter = limiter_at((-0.4, 0.1, 0.4))
    for _ in range(20):
        limiter.step(np.array([0.4, 0.1, 0.4]), UPRIGHT, 0.02)
    before, speeds = limiter.position[0], []
    for _ in range(12):
        after = limiter.step(np.array([0.4, 0.1, 0.4]), UPRIGHT, 0.02, 0.1)[0][0]
        speeds.append((after - before) / 0.02)
        before = after
    braking = [0.5 - 0.04 * (i + 1) for i in range(10)]
    np.testing.assert_allclose(speeds, [*braking, 0.1, 0.1], atol=1e-9)


# What is feasible passes unchanged

def feasible_path(accelerations, dt, start):
    """Integrate what each axis may do, keeping clear of the walls; the last limit is exact."""
    position, velocity = np.array(start, float), np.zeros(3)
    low, high = np.array(LIMITS.workspace_min) + 0.14, np.array(LIMITS.workspace_max) - 0.14
    path = []
    for fractions in accelerations:
        wanted = velocity + np.array(fractions) * LIMITS.max_acceleration * dt
        wanted = np.clip(wanted, -LIMITS.max_speed, LIMITS.max_speed)
        leaving = ((position + wanted * dt > high) & (wanted > 0)
                   | (position + wanted * dt < low) & (wanted < 0))
        change = np.clip(-velocity, -LIMITS.max_acceleration * dt, LIMITS.max_acceleration * dt)
        velocity = np.where(leaving, velocity + change, wanted)
        position = position + velocity * dt
        path.append(position)
    return path


fraction = st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-1.0, 1.0))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(fraction, fraction, fraction), max_size=60),
       st.sampled_from([0.01, 0.0125, 0.02]))
def test_a_feasible_trajectory_passes_to_the_bit(accelerations, dt):
    limiter = limiter_at()
    for position in feasible_path(accelerations, dt, limiter.position):
        after, quaternion, acted = limiter.step(position, UPRIGHT, dt)
        np.testing.assert_array_equal(after, position)
        assert acted == ()
        np.testing.assert_array_equal(quaternion, UPRIGHT)


def test_a_feasible_rotation_passes_to_the_bit():
    limiter = limiter_at()
    angle = rate = 0.0
    for _ in range(60):
        rate = min(rate + LIMITS.max_angular_acceleration * 0.02, LIMITS.max_angular_speed)
        angle += rate * 0.02
        quaternion = rotation.exp(np.array([0.0, angle, 0.0]))
        _, after, acted = limiter.step(limiter.position, quaternion, 0.02)
        assert after is quaternion and acted == ()


def test_a_stop_right_at_the_wall_is_feasible():
    """With steps of `min_dt_s`, as fast as the wall allows: full speed down to 0 in the wall."""
    dt = MIN_DT
    limiter = limiter_at((0.1, 0.1, 0.4))
    velocities = [*np.arange(0.02, 0.5, 0.02), *[0.5] * 18, *np.arange(0.5, 0.0, -0.02)]
    path = 0.1 + np.cumsum(velocities) * dt
    path += LIMITS.workspace_max[0] - path[-1]
    limiter.reset(np.array([path[0] - velocities[0] * dt, 0.1, 0.4]), UPRIGHT)
    for x in path:
        after, _, acted = limiter.step(np.array([x, 0.1, 0.4]), UPRIGHT, dt)
        assert acted == () and after[0] == x
    assert after[0] == LIMITS.workspace_max[0]


# What is not feasible

@settings(max_examples=80, deadline=None)
@given(inside, inside, st.sampled_from([MIN_DT, 0.0125, 0.02, 0.05]))
def test_a_target_that_stands_still_is_reached_without_overshoot(start, goal, dt):
    limiter = limiter_at(start)
    start, goal = np.array(start), np.array(goal)
    low, high = np.minimum(start, goal), np.maximum(start, goal)
    steps = 0
    while steps < 1000:
        position, _, acted = limiter.step(goal, UPRIGHT, dt)
        assert np.all(position >= low) and np.all(position <= high)
        if not acted:
            break
        steps += 1
    np.testing.assert_array_equal(position, goal)
    assert limiter.step(goal, UPRIGHT, dt)[0].tolist() == goal.tolist()
    assert limiter.at_rest
    way = np.abs(goal - start).max()
    fastest = (way / LIMITS.max_speed + LIMITS.max_speed / LIMITS.max_acceleration
               if way > LIMITS.max_speed ** 2 / LIMITS.max_acceleration
               else 2 * math.sqrt(way / LIMITS.max_acceleration))
    # Steps of min_dt: the best there is, rounded up; longer ones keep a reserve for shorter ones.
    assert steps * dt <= fastest * (1.0 if dt == MIN_DT else 1.25) + 4 * dt


@settings(max_examples=40, deadline=None)
@given(st.floats(-2.5, 2.5), st.sampled_from([MIN_DT, 0.02]))
def test_a_rotation_that_stands_still_is_reached_without_overshoot(angle, dt):
    limiter = limiter_at()
    watch = Watch(limiter)
    goal = rotation.exp(np.array([0.0, 0.0, angle]))
    before = 0.0
    for _ in range(400):
        _, quaternion, acted = limiter.step(limiter.position, goal, dt)
        watch.check(dt)
        turned = rotation.log(quaternion)[2] * (np.sign(angle) or 1)
        assert before - 1e-9 <= turned <= abs(angle) + 1e-9
        before = turned
        if not acted:
            break
    np.testing.assert_array_equal(quaternion, goal)


def test_a_moving_target_is_caught_up_with_and_then_followed_to_the_bit():
    limiter = limiter_at()
    lags = []
    for step in range(100):
        wanted = np.array([0.05 + 0.2 * step * 0.02, 0.1, 0.4])
        position, _, acted = limiter.step(wanted, UPRIGHT, 0.02)
        lags.append(wanted[0] - position[0])
    assert min(lags) > -1e-3  # it does not run ahead by more than a fraction of a step
    assert lags[21:] == [0.0] * 79 and acted == ()


def test_noise_on_a_target_is_not_taken_for_its_speed():
    """A moving target that shakes by 5 mm; chasing each shake at its speed gives 5.1 mm."""
    limiter = limiter_at((-0.45, 0.1, 0.4))
    noise = np.random.default_rng(1).normal(0.0, 0.005, 200)
    smooth = -0.45 + 0.2 * 0.02 * np.arange(200)
    reached = [limiter.step(np.array([x, 0.1, 0.4]), UPRIGHT, 0.02)[0][0] for x in smooth + noise]
    assert np.sqrt(np.mean((reached - smooth)[20:] ** 2)) < 0.004


def test_a_jump_is_no_speed():
    """One step of the target by 3 cm must not count as a target of 1.5 m/s."""
    limiter = limiter_at()
    for _ in range(100):
        goal = np.array([0.03, 0.1, 0.4])
        position, _, _ = limiter.step(goal, UPRIGHT, 0.02)
        assert position[0] <= goal[0]


def test_a_target_outside_the_workspace_ends_at_the_wall():
    limiter = limiter_at()
    for _ in range(300):
        position, _, acted = limiter.step(np.array([9.0, -9.0, 9.0]), UPRIGHT, 0.02)
        assert 'workspace' in acted
    np.testing.assert_array_equal(position, [0.5, -0.4, 0.8])


def test_from_outside_the_workspace_it_comes_back_within_the_limits():
    limiter = limiter_at((0.7, 0.1, 0.4))
    before, velocity = limiter.position, np.zeros(3)
    for _ in range(200):
        position, _, _ = limiter.step(np.array([0.9, 0.1, 0.4]), UPRIGHT, 0.02)
        moved = (position - before) / 0.02
        assert np.abs(moved).max() <= LIMITS.max_speed * (1 + ROUNDING)
        assert np.abs(moved - velocity).max() <= LIMITS.max_acceleration * 0.02 * (1 + ROUNDING)
        assert moved[0] <= 0
        before, velocity = position, moved
    assert position[0] == 0.5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(target, turn), min_size=1, max_size=20), st.sampled_from([0.01, 0.02]))
def test_a_brake_comes_to_rest_as_fast_as_allowed_and_stays(steps, dt):
    watch = Watch(limiter_at())
    for position, quaternion in steps:
        watch.limiter.step(np.array(position), quaternion, dt)
        watch.check(dt)
    fastest = max(np.abs(watch.velocity).max() / LIMITS.max_acceleration,
                  np.linalg.norm(watch.angular_velocity) / LIMITS.max_angular_acceleration)
    for _ in range(math.ceil(fastest / dt + 1e-6) + 1):
        watch.limiter.brake(dt)
        watch.check(dt)
    assert watch.limiter.at_rest
    rest = watch.limiter.position
    np.testing.assert_array_equal(watch.limiter.brake(dt)[0], rest)
    np.testing.assert_array_equal(watch.limiter.step(rest, watch.limiter.quaternion, dt)[0], rest)


def test_after_a_brake_the_speed_before_it_is_forgotten():
    limiter = limiter_at((-0.4, 0.1, 0.4))
    for step in range(40):
        limiter.step(np.array([-0.4 + 0.01 * step, 0.1, 0.4]),
                     rotation.exp(np.array([0.0, 0.02 * step, 0.0])), 0.02)
    while not limiter.at_rest:
        limiter.brake(0.02)
    goal, turned = limiter.position + [0.01, 0.0, 0.0], limiter.quaternion
    for _ in range(60):
        position, quaternion, _ = limiter.step(goal, turned, 0.02)
        assert position[0] <= goal[0]
        np.testing.assert_array_equal(quaternion, turned)
    np.testing.assert_array_equal(position, goal)


@pytest.mark.parametrize('goal, names', [
    ((0.001, 0.1, 0.4), 'acceleration'),
    ((0.3, 0.1, 0.4), 'speed'),
    ((0.6, 0.1, 0.4), 'workspace speed'),
    ((0.0004, 0.1, 0.4), ''),
])
def test_the_limits_that_acted_are_named(goal, names):
    assert limiter_at().step(np.array(goal), UPRIGHT, 0.02)[2] == tuple(names.split())


def test_the_angular_limits_that_acted_are_named():
    limiter = limiter_at()
    here = limiter.position
    assert limiter.step(here, rotation.exp(np.array([0.0, 1.0, 0.0])), 0.02)[2] == (
        'angular_speed',)
    limiter = limiter_at()
    assert limiter.step(here, rotation.exp(np.array([0.0, 0.01, 0.0])), 0.02)[2] == (
        'angular_acceleration',)


@pytest.mark.parametrize('spoil', [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_refused_and_changes_nothing(spoil):
    limiter = limiter_at()
    before = limiter.position
    for position, quaternion in (([spoil, 0, 0], UPRIGHT), ([0, 0, 0], [0.0, 0.0, 0.0, spoil])):
        with pytest.raises(ValueError, match='is not finite'):
            limiter.step(np.array(position), np.array(quaternion), 0.02)
        with pytest.raises(ValueError, match='is not finite'):
            limiter.reset(np.array(position), np.array(quaternion))
    np.testing.assert_array_equal(limiter.position, before)


@pytest.mark.parametrize('dt', [0.0, -0.02, math.nan, math.inf])
def test_a_step_that_does_not_last_is_refused(dt):
    with pytest.raises(ValueError, match='expected more than 0'):
        limiter_at().step(np.zeros(3), UPRIGHT, dt)


def way_to_stop(speed, acceleration, dt, min_dt):
    way = speed * dt
    while speed > 0:
        speed -= acceleration * min_dt
        way += max(speed, 0) * min_dt
    return way


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-6, 2.0), st.floats(0.1, 300.0), st.floats(0.005, 0.1), st.floats(0.005, 0.05))
def test_the_braking_speed_uses_the_room_and_no_more(room, acceleration, dt, min_dt):
    speed = braking_speed(room, acceleration, dt, min_dt)
    assert way_to_stop(speed, acceleration, dt, min_dt) == pytest.approx(room, rel=1e-9)


def test_without_room_there_is_no_speed():
    assert braking_speed(0.0, 1.0, 0.02, 0.01) == braking_speed(-1.0, 1.0, 0.02, 0.01) == 0.0


@pytest.mark.parametrize('change, message', [
    ({'max_speed': 0.0}, 'limits.max_speed is 0.0'),
    ({'max_acceleration': math.inf}, 'limits.max_acceleration is inf'),
    ({'max_angular_speed': math.nan}, 'limits.max_angular_speed is nan'),
    ({'max_angular_acceleration': -1.0}, 'limits.max_angular_acceleration is -1.0'),
    ({'max_start_jump': 0.0}, 'limits.max_start_jump is 0.0'),
    ({'start_speed': 0.6}, 'limits.start_speed 0.6 is above max_speed 0.5'),
    ({'workspace_min': (0.5, 0.0, 0.0)}, 'limits.workspace on x is from 0.5 to 0.5'),
    ({'workspace_max': (0.5, 0.6, math.inf)}, 'limits.workspace on z'),
])
def test_limits_without_sense_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        replace(LIMITS, **change)
