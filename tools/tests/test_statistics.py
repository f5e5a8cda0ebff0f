"""Intervals for paired differences: against simulation, normal theory and NumPy."""

import itertools
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llama_int8.measure.statistics import (
    holm,
    mcnemar_exact,
    mean_interval,
    paired_bootstrap,
    proportion_interval,
    smallest_detectable_change,
    spread,
)

Z95, Z80 = NormalDist().inv_cdf(0.975), NormalDist().inv_cdf(0.8)
VALUES = st.floats(-1e6, 1e6, allow_subnormal=False)
SAMPLES = st.integers(2, 12).flatmap(
    lambda n: st.tuples(
        arrays(np.float64, n, elements=VALUES), arrays(np.float64, n, elements=VALUES)
    )
)
quick = settings(max_examples=40, deadline=None)


def test_holms_correction_by_hand_and_in_any_order():
    given, expected = [0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]
    for order in itertools.permutations(range(4)):
        assert holm([given[n] for n in order]) == pytest.approx([expected[n] for n in order])
    assert holm([0.4]) == [0.4] and holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def normal(n, mean=0.0, seed=0):
    return np.random.default_rng(seed).normal(mean, 1.0, n)


def interval(first, second, **options):
    found = paired_bootstrap(first, second, **{"resamples": 200, **options})
    return np.array([found.mean, found.low, found.high])


def of_one_sample(values, **options):
    return paired_bootstrap(np.zeros_like(values), values, **options)


def excludes_zero(found):
    return found.low > 0 or found.high < 0


# --- against simulation and theory ------------------------------------------------------------


def test_the_interval_holds_the_true_mean_95_times_in_100():
    found = [of_one_sample(normal(40, 3.0, seed), resamples=200, seed=seed) for seed in range(300)]
    assert 0.91 <= np.mean([one.low <= 3.0 <= one.high for one in found]) <= 0.98


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_a_large_samples_interval_is_that_of_normal_theory(confidence):
    values = normal(2000, 0.3)
    found = of_one_sample(values, confidence=confidence, resamples=4000)
    half = NormalDist().inv_cdf((1 + confidence) / 2) * values.std(ddof=1) / np.sqrt(2000)
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.mean == pytest.approx(half, rel=0.08)
    assert found.mean - found.low == pytest.approx(half, rel=0.08)
    assert (found.confidence, found.n) == (confidence, 2000)


def test_the_smallest_detectable_difference_is_found_four_times_in_five():
    true = (Z95 + Z80) / np.sqrt(60)  # of 60 differences with standard deviation 1
    samples = [of_one_sample(normal(60, true, s), resamples=200, seed=s) for s in range(300)]
    assert 0.74 <= np.mean([excludes_zero(sample) for sample in samples]) <= 0.88
    assert np.mean([sample.smallest_detectable for sample in samples]) == pytest.approx(
        true, rel=0.03
    )


def test_no_difference_is_found_one_time_in_twenty():
    samples = [of_one_sample(normal(60, 0.0, s), resamples=200, seed=s) for s in range(300)]
    assert 0.02 <= np.mean([excludes_zero(sample) for sample in samples]) <= 0.09


def test_the_smallest_detectable_difference_halves_with_four_times_the_sample():
    values = normal(50)
    once, four = (of_one_sample(np.tile(values, k), resamples=10) for k in (1, 4))
    assert four.smallest_detectable == pytest.approx(once.smallest_detectable / 2, rel=0.02)


def test_the_smallest_detectable_difference_of_two_units_by_hand():
    # Differences 1 and 3: standard deviation sqrt(2), standard error 1.
    found = of_one_sample(np.array([1.0, 3.0]), resamples=10)
    assert found.smallest_detectable == pytest.approx(Z95 + Z80)


# --- properties -------------------------------------------------------------------------------


@quick
@given(SAMPLES, VALUES)
def test_a_shift_moves_mean_and_interval_by_itself(samples, shift):
    first, second = samples
    moved = interval(first, second + shift)
    np.testing.assert_allclose(moved, interval(first, second) + shift, rtol=1e-9, atol=1e-8)


@quick
@given(SAMPLES, st.floats(1e-3, 1e3))
def test_a_scale_stretches_mean_and_interval_by_itself(samples, scale):
    first, second = samples
    stretched = interval(first * scale, second * scale)
    np.testing.assert_allclose(stretched, interval(first, second) * scale, rtol=1e-9, atol=1e-8)


@quick
@given(SAMPLES)
def test_exchanging_the_two_mirrors_the_interval(samples):
    mean, low, high = interval(*samples)
    mirrored = interval(samples[1], samples[0])
    np.testing.assert_allclose(mirrored, [-mean, -high, -low], rtol=1e-9, atol=1e-8)


@quick
@given(SAMPLES)
def test_the_interval_lies_within_the_differences(samples):
    differences = samples[1] - samples[0]
    mean, low, high = interval(*samples)
    slack = 1e-9 * (1 + np.abs(differences).max())
    assert differences.min() - slack <= low <= high + slack <= differences.max() + 2 * slack
    assert mean == pytest.approx(differences.mean())


@quick
@given(st.lists(st.floats(-1e300, 1e300), min_size=2, max_size=20))
def test_identical_inputs_give_a_zero_interval(values):
    found = paired_bootstrap(values, values, resamples=50)
    assert (found.mean, found.low, found.high, found.smallest_detectable) == (0, 0, 0, 0)


@quick
@given(SAMPLES, st.floats(0.55, 0.94))
def test_more_confidence_never_gives_a_narrower_interval(samples, confidence):
    assume(np.ptp(samples[1] - samples[0]) > 1e-6)
    _, low, high = interval(*samples, confidence=confidence)
    _, lower, higher = interval(*samples, confidence=confidence + 0.05)
    slack = 1e-12 * np.abs(samples).max()  # of adding equal numbers in another order
    assert lower <= low + slack and high <= higher + slack


def test_noise_that_both_share_cancels():
    noise, change = 100 * normal(30, seed=1), 0.01 * normal(30, seed=2)
    np.testing.assert_allclose(
        interval(noise, noise + change), interval(np.zeros(30), change), atol=1e-12
    )
    unpaired = paired_bootstrap(noise, np.roll(noise, 1) + change)
    assert unpaired.high - unpaired.low > 1000 * np.ptp(interval(noise, noise + change))


def test_the_order_of_the_pairs_does_not_matter():
    first, second = normal(200, seed=3), normal(200, 0.2, seed=4)
    order = np.random.default_rng(5).permutation(200)
    one = paired_bootstrap(first, second, resamples=4000)
    other = paired_bootstrap(first[order], second[order], resamples=4000)
    assert other.mean == pytest.approx(one.mean)
    assert other.smallest_detectable == pytest.approx(one.smallest_detectable)
    # Other resamples are drawn, so the ends differ by their own random error alone.
    assert [other.low, other.high] == pytest.approx([one.low, one.high], abs=0.02)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    first, second = normal(20, seed=6), normal(20, seed=7)
    np.testing.assert_array_equal(interval(first, second), interval(first, second))
    assert not np.array_equal(interval(first, second), interval(first, second, seed=1))


def test_resampling_is_independent_draws_with_replacement():
    first, second = normal(9, seed=8), normal(9, seed=9)
    picks = np.random.default_rng(4).integers(0, 9, size=(500, 9))
    means = (second - first)[picks].mean(axis=1)
    expected = [(second - first).mean(), *np.quantile(means, [0.05, 0.95])]
    found = interval(first, second, confidence=0.9, resamples=500, seed=4)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1.0, 2.0], [1.0, 2.0, 3.0]),
        ([[1.0, 2.0]], [[1.0, 2.0]]),
        (1.0, 2.0),
        ([1.0], [2.0]),
        ([], []),
    ],
)
def test_unequal_or_too_small_shapes_are_refused_with_their_shapes(first, second):
    with pytest.raises(ValueError, match=r"shapes are .* n >= 2"):
        paired_bootstrap(first, second)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        paired_bootstrap([1.0, bad, 2.0], [1.0, 1.0, 1.0])


def test_two_infinities_do_not_hide_each_other():
    with pytest.raises(ValueError, match="NaN or infinity"), np.errstate(invalid="ignore"):
        paired_bootstrap([1.0, np.inf], [1.0, np.inf])


@pytest.mark.parametrize("confidence", [0, 1, 95, -0.5, np.nan])
def test_a_confidence_outside_zero_to_one_is_refused_with_its_value(confidence):
    with pytest.raises(ValueError, match=f"confidence is {confidence}"):
        paired_bootstrap([1.0, 2.0], [2.0, 3.0], confidence)


# --- spread -----------------------------------------------------------------------------------


@quick
@given(st.lists(VALUES, min_size=1, max_size=30))
def test_spread_is_numpys_quartiles(values):
    found = spread(values)
    expected = np.percentile(values, [25, 50, 75])
    np.testing.assert_allclose([found.low, found.median, found.high], expected)
    assert found.n == len(values)


def test_spread_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        spread([])


def test_a_share_lies_in_its_interval_and_the_interval_in_zero_to_one():
    for n in (1, 2, 7, 1000):
        for successes in {0, 1, n // 2, n}:
            low, high = proportion_interval(successes, n)
            assert 0 <= low <= successes / n <= high <= 1 and low < high


def test_the_interval_of_a_share_solves_wilsons_equation():
    for successes, n in ((3, 10), (11, 16), (998, 1000)):
        for bound in proportion_interval(successes, n):
            error = (bound * (1 - bound) / n) ** 0.5
            assert abs(successes / n - bound) == pytest.approx(Z95 * error, rel=1e-9)


def test_about_95_of_100_intervals_hold_the_true_share():
    drawn = np.random.default_rng(0).binomial(40, 0.9, size=2000)
    ends = np.array([proportion_interval(k, 40) for k in range(41)])[drawn]
    assert 0.93 < np.mean((ends[:, 0] <= 0.9) & (ends[:, 1] >= 0.9)) < 0.98


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_an_impossible_share_is_refused_with_its_numbers(successes, n):
    with pytest.raises(ValueError, match=f"{successes} successes of {n}"):
        proportion_interval(successes, n)


# --- a few values: Student's t ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("probability", "degrees", "published"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 5, 2.571),
        (0.95, 2, 2.920),
        (0.995, 10, 3.169),
    ],
)
def test_the_interval_is_as_wide_as_the_printed_tables_say(probability, degrees, published):
    values = normal(degrees + 1, 0.0, seed=1)
    mean, low, high = mean_interval(values, confidence=2 * probability - 1)
    error = values.std(ddof=1) / values.size**0.5
    assert (high - mean) / error == pytest.approx((mean - low) / error)
    assert (high - mean) / error == pytest.approx(published, abs=6e-4)


def test_with_many_values_student_is_normal():
    values = normal(100_001, 0.0, seed=2)
    mean, _, high = mean_interval(values)
    assert (high - mean) * values.size**0.5 / values.std(ddof=1) == pytest.approx(Z95, rel=1e-3)


def test_the_interval_of_three_values_holds_the_true_mean_95_times_in_100():
    intervals = [mean_interval(normal(3, 1.0, seed)) for seed in range(4000)]
    held = np.mean([low <= 1.0 <= high for _, low, high in intervals])
    assert 0.94 < held < 0.96


def test_an_interval_by_student_is_centred_on_the_mean():
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841), abs=1e-3)


@pytest.mark.parametrize("values", [[], [1.0], [[1.0, 2.0]]])
def test_an_interval_needs_two_values(values):
    with pytest.raises(ValueError, match="n >= 2"):
        mean_interval(values)


# --- two tests on the same items ----------------------------------------------------------------


def as_one_sided_or_more(only_first, only_second):
    """Share of all ways in which fair coins fall that lie as far from even as these did."""
    n, distance = only_first + only_second, abs(only_first - only_second)
    ways = [abs(2 * sum(coins) - n) >= distance for coins in itertools.product((0, 1), repeat=n)]
    return Fraction(sum(ways), len(ways))


@pytest.mark.parametrize("n", range(1, 11))
def test_mcnemars_p_value_counts_the_ways_in_which_fair_coins_fall(n):
    for k in range(n + 1):
        expected = float(as_one_sided_or_more(k, n - k))
        assert mcnemar_exact(k, n - k) == pytest.approx(expected, rel=1e-12)


@quick
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemars_p_value_is_a_probability_that_knows_no_order(first, second):
    p = mcnemar_exact(first, second)
    assert 0 <= p <= 1 and p == mcnemar_exact(second, first)
    assert mcnemar_exact(first, first) == 1
    if first >= second:
        assert mcnemar_exact(first + 1, second) <= p  # farther from even


def test_with_many_changes_mcnemars_p_value_is_that_of_normal_theory():
    for first, second in ((520, 480), (550, 450), (1000, 900)):
        z = (abs(first - second) - 1) / (first + second) ** 0.5
        expected = 2 * (1 - NormalDist().cdf(z))
        assert mcnemar_exact(first, second) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("counts", [(-1, 3), (3, -1)])
def test_a_negative_count_is_refused_with_its_value(counts):
    with pytest.raises(ValueError, match=f"counts are {counts[0]} and {counts[1]}"):
        mcnemar_exact(*counts)


def drawn_with_the_smallest_detectable_change(n, changed, times):
    """Items won and lost, (times,) each, where the second model is better by that difference."""
    d = smallest_detectable_change(n, changed)
    share = max((changed + 2) / (n + 4), d)
    chances = [(share + d) / 2, (share - d) / 2, 1 - share]  # won, lost, the same
    return np.random.default_rng(0).multinomial(n, chances, size=times).T[:2]


@pytest.mark.parametrize(("n", "changed"), [(1838, 60), (400, 40), (1000, 300)])
def test_the_smallest_detectable_change_is_found_four_times_in_five(n, changed):
    won, lost = drawn_with_the_smallest_detectable_change(n, changed, 6000)
    found = np.abs(won - lost) > Z95 * np.sqrt(won + lost)
    assert 0.77 <= found.mean() <= 0.84


@pytest.mark.parametrize(
    ("n", "changed"), [(1838, 60), (400, 40), (1000, 100), (200, 0), (40, 0), (40, 8)]
)
def test_the_exact_test_finds_it_nearly_as_often(n, changed):
    # It errs at most one time in 20, where normal theory errs a little more often.
    pairs = drawn_with_the_smallest_detectable_change(n, changed, 800)
    pairs, times = np.unique(pairs, axis=1, return_counts=True)
    found = [mcnemar_exact(*map(int, pair)) < 0.05 for pair in pairs.T]
    assert 0.68 <= np.average(found, weights=times) <= 0.86


@quick
@given(st.integers(1, 5000), st.data())
def test_more_items_show_a_smaller_change_and_more_noise_hides_a_larger_one(n, data):
    changed = data.draw(st.integers(0, n))
    d = smallest_detectable_change(n, changed)
    assert 0 < d <= 1
    assert smallest_detectable_change(2 * n + 4, 2 * changed + 2) <= d  # the same share
    if changed < n:
        assert smallest_detectable_change(n, changed + 1) >= d
    assert smallest_detectable_change(n, changed, confidence=0.99) >= d


@pytest.mark.parametrize(("n", "changed"), [(1000, 8), (1838, 60), (400, 40)])
def test_the_smallest_detectable_change_solves_connors_equation(n, changed):
    d = smallest_detectable_change(n, changed)
    share = (changed + 2) / (n + 4)
    assert d < share
    needed = (Z95 * share**0.5 + Z80 * (share - d**2) ** 0.5) ** 2 / d**2
    assert needed == pytest.approx(n, rel=1e-6)


def test_four_times_the_items_show_half_the_change():
    # With the two added to either side the share is 1 in 10 both times; d is small beside it.
    once, four = smallest_detectable_change(9_996, 998), smallest_detectable_change(39_996, 3998)
    assert four == pytest.approx(once / 2, rel=0.01)
    assert once == pytest.approx((Z95 + Z80) * (0.1 / 10_000) ** 0.5, rel=0.01)


@pytest.mark.parametrize(("n", "changed"), [(100, 10), (400, 0), (400, 40), (2000, 150)])
def test_a_change_of_that_size_is_itself_significant(n, changed):
    d = smallest_detectable_change(n, changed)
    both = max(round((changed + 2) / (n + 4) * n), round(d * n))
    won = round((both + d * n) / 2)
    assert mcnemar_exact(both - won, won) < 0.05


def test_a_change_that_no_sample_of_this_size_could_show_is_one():
    assert smallest_detectable_change(3, 3) == 1.0


@pytest.mark.parametrize(("n", "changed"), [(0, 0), (10, 11), (10, -1), (-3, 0)])
def test_impossible_counts_of_changes_are_refused_with_their_numbers(n, changed):
    with pytest.raises(ValueError, match=f"{changed} changed of {n}"):
        smallest_detectable_change(n, changed)
