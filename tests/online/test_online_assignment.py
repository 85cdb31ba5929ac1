"""Assignment: uniform, the same for ever, independent between salts; shares that cannot be are refused."""

import hashlib

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare

from crops.errors import CropsError
from crops.online.experiment import BUCKETS, NOBODY, Arm, Experiment, assign, buckets, check_concurrent, split

USERS = np.arange(1, 100_001)
MASK = 2**64 - 1


def bucket_by_hand(user, salt):
    """splitmix64 in plain integers, started at the first 64 bits of the salt's SHA-256."""
    start = int.from_bytes(hashlib.sha256(salt.encode()).digest()[:8], "big")
    x = (start * 0x9E3779B97F4A7C15 + user) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return (x ^ (x >> 31)) % 10_000


def ten_ten(name, salt):
    return Experiment(name, salt, split({"control": 0.1, "treatment": 0.1}))


def test_buckets_are_those_of_plain_integers():
    ids = np.array([1, 2, 77, 10**12])
    assert buckets(ids, "salt").tolist() == [bucket_by_hand(int(i), "salt") for i in ids]


def test_buckets_are_uniform():
    counts = np.bincount(buckets(USERS, "dense-0") // 100, minlength=100)
    assert chisquare(counts).pvalue > 0.001
    shares = np.bincount(assign(ten_ten("x", "dense-0"), USERS) + 1) / len(USERS)
    # 10 % of 100,000 users: standard error 0.095 points; four of them
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.004)


def test_a_wider_share_keeps_who_was_in():
    small = assign(Experiment("x", "salt", (Arm("a", 0, 1000), Arm("b", 5000, 6000))), USERS)
    large = assign(Experiment("x", "salt", (Arm("a", 0, 2000), Arm("b", 5000, 7000))), USERS)
    assert (large[small != NOBODY] == small[small != NOBODY]).all()
    some = np.random.default_rng(0).permutation(USERS)[:5_000]  # whoever else is asked about
    assert (
        assign(Experiment("x", "salt", (Arm("a", 0, 1000), Arm("b", 5000, 6000))), some) == small[some - 1]
    ).all()


def test_layers_are_independent():
    one, two = assign(ten_ten("one", "s1"), USERS), assign(ten_ten("two", "s2"), USERS)
    table = np.histogram2d(one, two, bins=(3, 3))[0]
    assert chi2_contingency(table).pvalue > 0.001
    # of 10,000 users in an arm about a tenth are in an arm of the other layer
    assert table[1, 1] == pytest.approx(1_000, abs=130)


def test_one_salt_is_one_layer():
    left = Experiment("left", "salt", (Arm("a", 0, 1000), Arm("b", 1000, 2000)))
    apart = Experiment("apart", "salt", (Arm("a", 2000, 3000), Arm("b", 3000, 4000)))
    check_concurrent([left, apart])
    assert not ((assign(left, USERS) != NOBODY) & (assign(apart, USERS) != NOBODY)).any()
    overlapping = Experiment("over", "salt", (Arm("a", 1500, 3000),))
    with pytest.raises(CropsError, match="'b' of 'left' and 'a' of 'over' overlap.* 1500 to 2000"):
        check_concurrent([left, overlapping])
    check_concurrent([left, Experiment("over", "another salt", overlapping.arms)])


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ((), "no arms"),
        ((Arm("a", 0, 10), Arm("a", 10, 20)), "'a' is named more than once"),
        ((Arm("a", 0, 10), Arm("b", 9, 20)), "overlap.* 9 to 10"),
        ((Arm("a", 10, 10),), "buckets 10 to 10"),
        ((Arm("a", 0, BUCKETS + 1),), "go from 0 to 10000"),
    ],
)
def test_impossible_arms_and_shares_are_refused(arms, message):
    with pytest.raises(CropsError, match=message):
        Experiment("x", "salt", arms)
    for shares, told in (
        ({"a": 0.6, "b": 0.5}, "sum to 1.1"),
        ({"a": 0.0}, "share 0"),
        ({"a": 1e-6}, "0.0001"),
    ):
        with pytest.raises(CropsError, match=told):
            split(shares)
    arms = split(dict.fromkeys("abc", 0.3333) | {"d": 0.0001})  # all users can be given out
    assert (arms[0].first, arms[-1].end) == (0, BUCKETS)
    with pytest.raises(CropsError, match="none of the 20 users .* about 10,000 users"):
        assign(Experiment("x", "salt", split({"a": 0.001})), np.arange(1, 21))
    with pytest.raises(CropsError, match="'x' is named more than once"):
        check_concurrent([ten_ten("x", "s1"), ten_ten("x", "s2")])
