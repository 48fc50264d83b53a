"Tests of a loss against references: scipy's exact test, every flip by hand, closed testing, and exams that are drawn"
from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import binomtest

from forge_nb.metrics.paired import (adjust_holm, bound_share_difference, compare_paired, compute_flip_p, compute_mcnemar_p, compute_power,
                                     count_items_needed, find_smallest_drop, size_by_spread)


def draw(rng, num_items, discordant, drop, num_exams):
    "Lost and won items of exams whose true loss is `drop`"
    shares = [(discordant + drop) / 2, (discordant - drop) / 2, 1 - discordant]
    return rng.multinomial(num_items, shares, size=num_exams)[:, :2]


def test_mid_p_is_half_way_between_two_exact_tests():
    "P(X > b) + P(X = b) / 2 is the mean of scipy's exact p for b losses and for one more"
    exact = lambda b, n: binomtest(b, n, .5, alternative="greater").pvalue if 0 <= b <= n else 0.
    for lost, won in product(range(31), repeat=2):
        if lost + won: assert compute_mcnemar_p(lost, won) == pytest.approx((exact(lost, lost + won) + exact(lost + 1, lost + won)) / 2, abs=1e-12)


def test_mid_p_of_a_published_table():
    "Airways before and after a transplantation, seven changes against one, as in Fagerland, Lydersen and Laake 2013: two-sided 0.039"
    assert round(2 * compute_mcnemar_p(7, 1), 3) == .039


def test_flipped_signs_are_all_tried_where_they_are_few():
    rng = np.random.default_rng(1)
    for size in (2, 5, 9):
        differences = rng.normal(-.3, 1, size=size).round(2)
        sums = [np.dot(signs, differences) for signs in product((1, -1), repeat=size)]
        expected = np.mean([total <= differences.sum() + 1e-9 for total in sums])
        assert compute_flip_p(differences) == (pytest.approx(expected), 2 ** size, True)
    assert compute_flip_p(np.array([-1.]))[0] == .5


def test_flipped_signs_are_drawn_the_same_twice():
    differences = np.random.default_rng(2).normal(-.1, 1, size=300)
    assert compute_flip_p(differences) == compute_flip_p(differences) and compute_flip_p(differences)[1:] == (9999, False)
    assert compute_flip_p(differences, seed=1)[0] == pytest.approx(compute_flip_p(differences)[0], abs=.02)


def test_holm_is_closed_testing_with_bonferroni():
    "The adjusted p of a slice is the largest, over all sets of slices that hold it, of the set's smallest p times its size"
    rng = np.random.default_rng(3)
    for size in (1, 2, 3, 5):
        for p_values in rng.random((20, size)) ** 3:
            sets = [c for k in range(1, size + 1) for c in combinations(range(size), k)]
            closed = [min(1, max(len(c) * min(p_values[list(c)]) for c in sets if n in c)) for n in range(size)]
            assert adjust_holm(p_values.tolist()) == pytest.approx(closed)


@pytest.mark.parametrize("num_items, discordant, drop, alpha, floor", [
    (130, .05, .05, .05, 0.), (400, .15, .05, .05 / 3, 0.), (700, .3, .06, .05 / 3, .02), (1400, .4, .05, .05 / 5, 0.), (400, .1, 0., .05, 0.)])
def test_power_agrees_with_exams_that_are_drawn(num_items, discordant, drop, alpha, floor):
    counts = draw(np.random.default_rng(5), num_items, discordant, drop, 4000)
    found = np.mean([compute_mcnemar_p(*pair) <= alpha and pair[0] - pair[1] > floor * num_items for pair in counts.tolist()])
    assert found == pytest.approx(compute_power(num_items, discordant, drop, alpha=alpha, floor=floor), abs=.025)


def test_the_smallest_loss_is_found_in_four_of_five():
    rng = np.random.default_rng(6)
    for num_items, changed in ((400, 20), (700, 107), (1400, 560)):
        drop = find_smallest_drop(num_items, changed, .05 / 3)
        counts = draw(rng, num_items, max(changed / num_items, drop), drop, 4000)
        assert np.mean([compute_mcnemar_p(*pair) <= .05 / 3 for pair in counts.tolist()]) == pytest.approx(.8, abs=.03)
        needed = count_items_needed(changed / num_items, drop, .05 / 3)
        assert needed == pytest.approx(num_items, rel=.1)


def test_items_for_a_loss_of_ten_points():
    "As simulated elsewhere: 241 items at 40 % of changed ones, 87 at 15 %; under Holm over twenty slices 519 and 186"
    found = [count_items_needed(discordant, .1, alpha) for alpha in (.05, .05 / 20) for discordant in (.4, .15)]
    assert found == [pytest.approx(items, rel=.05) for items in (241, 87, 519, 186)]


def test_intervals_of_shares_hold_the_truth():
    rng = np.random.default_rng(7)
    for num_items, discordant, drop in ((130, .05, .02), (400, .15, .05), (1400, .4, 0.)):
        bounds = [bound_share_difference(*pair, num_items) for pair in draw(rng, num_items, discordant, drop, 2000).tolist()]
        assert np.mean([low <= -drop <= high for low, high in bounds]) == pytest.approx(.955, abs=.025)  # 0.97 where few items change


def test_the_power_of_means_agrees_with_differences_that_are_drawn():
    rng = np.random.default_rng(8)
    for spread, floor in ((.3, 0.), (.3, .04)):
        smallest, _ = size_by_spread(spread, 400, alpha=.05 / 3, floor=floor)
        exams = rng.normal(-smallest, spread, size=(200, 400))
        found = [compute_flip_p(exam, num_permutations=499)[0] <= .05 / 3 and -exam.mean() > floor for exam in exams]
        assert np.mean(found) == pytest.approx(.8, abs=.08)


def test_one_item_and_equal_values_break_nothing():
    for values in ([1.], [.5], [0., 0., 0.], [.25] * 9):
        row = compare_paired(values, values)
        assert row["p"] >= .5 and row["low"] <= 0 <= row["high"] and row["difference"] == 0
