"Kappa against formulas that stand in print, and against judges whose worth is known beforehand"
import numpy as np
import pytest

from forge_nb.metrics.agreement import bound_kappa, compute_kappa, measure_agreement, measure_base_rate, measure_self_consistency

TABLES = [[[20, 5], [10, 15]], [[88, 10, 2], [14, 40, 6], [18, 10, 12]], [[40, 3, 7], [4, 60, 6], [10, 10, 60]]]


def spread(table) -> tuple:
    "The cases of a table of counts, as labels of its rows and of its columns"
    cases = [(str(row), str(column)) for row, counts in enumerate(table) for column, count in enumerate(counts) for _ in range(count)]
    return tuple(map(list, zip(*cases)))


def estimate_by_formula(table) -> tuple:
    "Kappa and its standard error for large samples, by Fleiss, Cohen and Everitt (1969)"
    share = np.array(table) / np.sum(table)
    rows, columns, same = share.sum(1), share.sum(0), np.trace(share)
    chance = rows @ columns
    kappa = (same - chance) / (1 - chance)
    diagonal = (np.diag(share) * (1 - (rows + columns) * (1 - kappa)) ** 2).sum()
    off = (share * (columns[:, None] + rows[None]) ** 2).sum() - (np.diag(share) * (rows + columns) ** 2).sum()
    variance = diagonal + (1 - kappa) ** 2 * off - (kappa - chance * (1 - kappa)) ** 2
    return kappa, (variance / np.sum(table)) ** .5 / (1 - chance)


@pytest.mark.parametrize("table", TABLES)
def test_kappa_and_interval_are_those_of_the_formula(table):
    labels, verdicts = spread(table)
    kappa, error = estimate_by_formula(table)
    low, high = bound_kappa(labels, verdicts)
    assert compute_kappa(labels, verdicts) == pytest.approx(kappa, abs=1e-12)
    assert (low, high) == pytest.approx((kappa - 1.96 * error, kappa + 1.96 * error), abs=.25 * 1.96 * error)


def test_a_table_of_three_labels_by_hand():
    "They agree in 140 of 200; by chance it would be 0.5 × 0.6 + 0.3 × 0.3 + 0.2 × 0.1 = 0.41 of them"
    assert compute_kappa(*spread(TABLES[1])) == pytest.approx((.7 - .41) / (1 - .41), abs=1e-12)


@pytest.mark.parametrize("labels", [["a"] * 50 + ["b"] * 50, ["a"] * 5 + ["b"] * 5 + ["tie"] * 90])
def test_a_constant_judge_has_no_kappa_whatever_the_base_rate(labels):
    for constant in set(labels):
        found = measure_agreement(labels, [constant] * len(labels))
        assert (found["kappa"], found["low"], found["high"]) == (0, 0, 0)
    assert found["base_rate"] == measure_base_rate(labels)


def test_luck_has_an_interval_around_nothing_and_an_able_judge_one_above():
    rng = np.random.default_rng(17)
    labels = rng.choice(["a", "b", "tie"], size=240, p=[.3, .3, .4]).tolist()
    luck = measure_agreement(labels, rng.permutation(labels).tolist())
    able = measure_agreement(labels, [label if rng.random() < .8 else rng.choice(["a", "b", "tie"]) for label in labels])
    assert luck["low"] < 0 < luck["high"] and .6 < able["low"] < able["kappa"] < able["high"] < 1


def test_sides_can_change_places_and_labels_their_names():
    labels, verdicts = spread(TABLES[1])
    assert compute_kappa(labels, verdicts) == pytest.approx(compute_kappa(verdicts, labels), abs=1e-12)
    named = [dict(zip("012", names)) for names in (("x", "y", "z"), ("tie", "b", "a"))]
    assert len({round(compute_kappa([n[x] for x in labels], [n[x] for x in verdicts]), 12) for n in named}) == 1


def test_what_cannot_be_read_is_consistent_with_nothing():
    assert measure_self_consistency([(None, None)] * 3 + [("a", "a")]) == .25


def test_sides_of_different_length_are_refused():
    with pytest.raises(ValueError): measure_agreement(["a", "b"], ["a"])
