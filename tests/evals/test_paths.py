"The six paths: a fixture for each, which what is measured and what people know lead to; and what turns the advice"
from dataclasses import replace

import pytest

from forge_nb.core.settings import Case
from forge_nb.evals.paths import PATHS, Evidence, list_obstacles, measure_reading, rank_paths, recommend
from forge_nb.evals.suites import make_score_row

READ = Evidence(look_up=.9, train=.6, form=True, base="small", base_reads=True, base_parameters=135., megabytes=10.)  # facts that must be read, in a form
FIXTURES = dict(
    prompt=(replace(READ, look_up=0., train=0., form=False), Case()),
    retrieval=(replace(READ, train=0., form=False), Case()),
    api_tuning=(READ, Case(data_may_go="vendor", engineers=0)),
    adapters=(READ, Case()),
    continued=(replace(READ, base_reads=False), Case()),
    scratch=(READ, Case(base_models=False)))


@pytest.mark.parametrize("path", PATHS)
def test_each_path_has_a_case_that_leads_to_it(path):
    evidence, case = FIXTURES[path]
    verdict = recommend(evidence, case, [])
    assert verdict["path"] == path and path not in verdict["obstacles"]
    assert verdict["runner_up"] != path and (verdict["runner_up"] or path == "scratch")
    assert all(turn["path"] != path for turn in verdict["turns"]) and verdict["turns"]


def test_a_search_without_a_model_needs_no_base():
    knowledge = replace(READ, train=0., form=False, base="scratch", base_reads=None)
    assert rank_paths(knowledge, Case(base_models=False), [])[0] == "retrieval"
    assert rank_paths(replace(knowledge, form=True), Case(base_models=False, form_matters=False), [])[0] == "retrieval"
    assert rank_paths(replace(knowledge, form=True), Case(base_models=False), [])[0] == "scratch"


def test_nothing_leaves_unless_it_may():
    for place in ("own machine", "private cloud"):
        assert "api_tuning" not in rank_paths(READ, Case(data_may_go=place), [])
    assert "api_tuning" in rank_paths(READ, Case(data_may_go="vendor"), [])


def test_volume_decides_between_a_vendor_and_ones_own_unless_costs_do():
    best = lambda costs=(), **known: rank_paths(READ, Case(data_may_go="vendor", **known), [*costs])[0]
    assert [best(questions_per_month=n) for n in (100, 1_000_000)] == ["api_tuning", "adapters"]
    dear = [dict(path="api_tuning", minutes=None, money=90.), dict(path="adapters", minutes=60., money=10.)]
    assert best(dear, questions_per_month=100) == "adapters"


def test_what_is_too_large_or_too_dear_is_no_path():
    assert [p for p in PATHS if list_obstacles(p, READ, Case(largest_model=20), [])] == ["prompt", "retrieval", "api_tuning", "adapters", "continued"]
    costs = [dict(path=path, minutes=1., money=money) for path, money in (("adapters", 30.), ("scratch", 3.))]
    assert rank_paths(READ, Case(budget=20.), costs)[0] == "continued"
    assert recommend(READ, Case(engineers=0, base_models=False), [])["path"] == ""


def test_little_text_makes_no_model_from_scratch():
    assert recommend(replace(READ, megabytes=.2), Case(base_models=False), [])["path"] == ""


def test_whether_a_base_reads_is_measured_by_its_answers_with_and_without_passages():
    def rows(arm, rights): return [make_score_row(arm, "exact_match", "all", str(n), right) for n, right in enumerate(rights)]
    blind = rows("few_shots", [1, 0] * 20) + rows("retrieval_and_reading", [0, 1] * 20)
    assert measure_reading(blind) is False
    assert measure_reading(rows("few_shots", [0] * 40) + rows("retrieval_and_reading", [0, 1] * 20)) is True
