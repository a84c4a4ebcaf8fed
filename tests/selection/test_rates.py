"""Rates beyond a list at whose edge the best one lies."""

import math
from collections.abc import Sequence

import pytest

from nc_finetune.selection import search_rates
from nc_finetune.selection.rates import MOST_EXTENSIONS, is_better, search_options


def peaked(best: float, diverged_from: float = math.inf) -> object:
    return lambda rate: None if rate >= diverged_from else -abs(math.log(rate / best))


@pytest.mark.parametrize(
    ("rates", "best", "tried", "chosen"),
    [
        ([1e-3, 3e-3, 1e-2], 3e-3, [1e-3, 3e-3, 1e-2], 3e-3),
        ([1e-3, 3e-3], 1e-2, [1e-3, 3e-3, 9e-3, 0.027], 9e-3),
        ([3e-3, 1e-2], 4e-4, [3e-3, 1e-2, 1e-3, 0.000333333, 0.000111111], 0.000333333),
        ([1e-3], 1e-3, [1e-3, 3e-3, 0.000333333], 1e-3),
    ],
)
def test_a_list_grows_until_the_best_lies_inside(
    rates: Sequence[float], best: float, tried: list[float], chosen: float
) -> None:
    found = search_rates(rates, peaked(best))  # type: ignore[arg-type]
    assert (list(found.scores), found.chosen, found.bracketed) == (tried, chosen, True)
    assert found.extensions == len(tried) - len(rates)


def test_a_rate_that_diverged_did_worse() -> None:
    found = search_rates([1e-3, 3e-3], peaked(1.0, diverged_from=5e-3))  # type: ignore[arg-type]
    assert found.scores[9e-3] is None
    assert (found.chosen, found.bracketed, found.extensions) == (3e-3, True, 1)


def test_where_all_diverge_lower_ones_are_tried() -> None:
    found = search_rates([1.0, 3.0], peaked(1e-3, diverged_from=0.2))  # type: ignore[arg-type]
    assert found.chosen == 0.0123457
    assert not found.bracketed
    nothing = search_rates([1.0], lambda rate: None)
    assert (nothing.chosen, nothing.bracketed, nothing.extensions) == (None, False, MOST_EXTENSIONS)


def test_there_is_an_end_to_it() -> None:
    found = search_rates([1.0, 3.0], lambda rate: rate)
    assert (found.chosen, found.extensions, found.bracketed) == (243.0, MOST_EXTENSIONS, False)
    assert search_rates([1.0, 3.0], lambda rate: rate, extensions=0).scores == {1.0: 1.0, 3.0: 3.0}


def test_of_equal_scores_the_first_stays() -> None:
    assert search_rates([3.0, 1.0, 9.0], lambda rate: 0.5, extensions=0).chosen == 3.0
    assert not is_better(math.nan, 0.0)
    assert is_better(0.0, math.nan)


@pytest.mark.parametrize("rates", [[], [0.0, 1.0], [-1.0]])
def test_rates_must_be_above_0(rates: list[float]) -> None:
    with pytest.raises(ValueError, match="there must be at least one learning rate, and all above 0"):
        search_rates(rates, lambda rate: 1.0)


def test_options_are_chosen_one_after_the_other_and_the_rate_once_more() -> None:
    asked: list[tuple[dict[str, object], float]] = []

    def score(options: dict[str, object], rate: float) -> float:
        asked.append((dict(options), rate))
        wanted = 0.00111111 if options == {"rank": 16, "where": "all"} else 9e-3
        return -abs(math.log(rate / wanted)) - abs(int(str(options["rank"])) - 16) - 5 * (options["where"] != "all")

    found = search_options([3e-3, 1e-2], {"rank": [4, 8], "where": ["mlp", "all"]}, score)
    assert found.chosen == {"rank": 16, "where": "all"}
    assert (found.rates.chosen, found.rates.bracketed, found.edges) == (0.00111111, True, ())
    assert {*found.scores["rank"]} == {"4", "8", "16", "32"}
    assert {*found.scores["where"]} == {"mlp", "all"}
    assert {rate for options, rate in asked if options == {"rank": 4, "where": "all"}} == set()


def test_numbers_that_do_not_end_are_at_an_edge_and_others_have_none() -> None:
    found = search_options([1.0], {"rank": [1, 2], "x": [True, False]}, lambda options, rate: options["rank"], 2)
    assert found.edges == ("rank",)
    assert found.chosen == {"rank": 8, "x": True}


def test_of_equal_rates_the_one_that_was_best_before_options_stays() -> None:
    def score(options: dict[str, int], rate: float) -> float:
        return min(options["rank"], 8) + (options["rank"] == 4 and rate > 5e-3)  # of other ranks all rates are equal

    found = search_options([3e-3, 1e-2], {"rank": [4, 8]}, score)
    assert (found.chosen, found.rates.chosen) == ({"rank": 8}, 1e-2)


def test_nothing_is_chosen_where_everything_diverges() -> None:
    found = search_options([1.0], {"rank": [1, 2]}, lambda options, rate: None)
    assert (found.rates.chosen, found.scores, found.chosen) == (None, {}, {"rank": 1})


@pytest.mark.parametrize(
    ("candidates", "best", "chosen", "edges"),
    [
        ([{"alpha": 8}, {"alpha": 16}], 40, {"alpha": 32}, ()),
        ([{"alpha": 8}, {"alpha": 16}], 3, {"alpha": 4}, ()),
        ([{"alpha": 8}, {"alpha": 16}], 10_000, {"alpha": 256}, ("options",)),
        ([{"alpha": 8}, {"beta": 16}], 40, {"beta": 16}, ()),  # these have no order
        ([{"alpha": 8, "beta": 1}, {"alpha": 16, "beta": 1}], 40, {"alpha": 16, "beta": 1}, ()),
        ([{"alpha": True}, {"alpha": False}], 40, {"alpha": True}, ()),
    ],
)
def test_a_number_in_a_mapping_is_bracketed_too(
    candidates: list[dict[str, int]], best: int, chosen: dict[str, int], edges: tuple[str, ...]
) -> None:
    def score(options: dict[str, dict[str, int]], rate: float) -> float:
        return -abs(math.log(best / max(0.5, *options["options"].values())))

    found = search_options([1e-3], {"options": candidates}, score)
    assert (found.chosen["options"], found.edges) == (chosen, edges)
