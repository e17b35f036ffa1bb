"""Two messages of one stamp make one value."""

import pytest

from diffusion_policy_ros.control.pairing import StampPairing


@pytest.mark.parametrize('first, second', [('motion', 'gripper'), ('gripper', 'motion')])
def test_halves_join_in_whatever_order_they_come(first, second):
    pairing = StampPairing()
    assert pairing.push(first, 5, first.upper()) is None
    assert pairing.push(second, 5, second.upper()) == ('MOTION', 'GRIPPER')
    assert pairing.dropped == 0


def test_halves_of_other_stamps_do_not_join():
    pairing = StampPairing()
    assert pairing.push('motion', 5, 'a') is None
    assert pairing.push('gripper', 6, 'b') is None
    assert pairing.push('motion', 6, 'c') == ('c', 'b')
    assert pairing.push('gripper', 5, 'd') == ('a', 'd')


def test_a_pair_is_handed_out_once():
    pairing = StampPairing()
    pairing.push('motion', 5, 'a')
    assert pairing.push('gripper', 5, 'b') is not None
    assert pairing.push('gripper', 5, 'b') is None


def test_none_is_a_value():
    pairing = StampPairing()
    pairing.push('gripper', 5, None)
    assert pairing.push('motion', 5, 'a') == ('a', None)


def test_the_first_of_more_than_four_stamps_is_dropped():
    pairing = StampPairing()
    for stamp in (3, 1, 2, 5, 4):
        assert pairing.push('gripper', stamp, stamp) is None
    assert pairing.dropped == 1
    for stamp in (1, 2, 4, 5):
        assert pairing.push('motion', stamp, 'm') == ('m', stamp)
    assert pairing.push('motion', 3, 'late') is None


def test_halves_join_after_the_clock_was_set_back():
    pairing = StampPairing()
    for stamp in (91, 92, 93, 94):
        pairing.push('gripper', stamp, stamp)
    assert pairing.push('gripper', 1, 'g') is None
    assert pairing.push('motion', 1, 'm') == ('m', 'g')


def test_a_half_sent_twice_replaces_the_first():
    pairing = StampPairing()
    pairing.push('motion', 5, 'old')
    pairing.push('motion', 5, 'new')
    assert pairing.dropped == 1
    assert pairing.push('gripper', 5, 'g') == ('new', 'g')


def test_reset_forgets():
    pairing = StampPairing()
    pairing.push('motion', 5, 'a')
    pairing.reset()
    assert pairing.push('gripper', 5, 'b') is None


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="half is 'left'"):
        StampPairing().push('left', 5, 'a')
    with pytest.raises(ValueError, match='limit is 0'):
        StampPairing(0)
