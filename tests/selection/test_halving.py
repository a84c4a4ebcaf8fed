import random

import pytest

from nc_finetune.selection._trials.halving import Measurement, best_of, score, spread_out, successive_halving


class FakeTrial:
    def __init__(self, quality: float, log: list[int]) -> None:
        self.quality = quality
        self.log = log

    def advance(self, steps: int) -> Measurement:
        self.log.append(steps)
        return Measurement(self.quality, 1.0 / self.quality, 1000)


def test_the_best_wins_within_the_budget() -> None:
    log: list[int] = []
    qualities = {name: 0.1 + 0.1 * place for place, name in enumerate("abcdefgh")}
    rungs = successive_halving(list(qualities), lambda name: FakeTrial(qualities[name], log), steps=240)
    assert best_of(rungs[-1]) == "h"
    assert [len(rung.measured) for rung in rungs] == [8, 4, 2]
    assert [rung.steps for rung in rungs] == [10, 30, 70]
    assert sum(log) == 240


def test_a_single_candidate_is_the_choice() -> None:
    rungs = successive_halving(["a"], lambda _: FakeTrial(0.5, []), steps=4)
    assert best_of(rungs[-1]) == "a"


def test_no_candidate_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one candidate"):
        successive_halving([], lambda _: FakeTrial(0.5, []), steps=4)


def measured(images: int, accuracies: list[float], nc1s: list[float]) -> dict[str, Measurement]:
    pairs = zip(accuracies, nc1s, strict=True)
    return {str(place): Measurement(accuracy, nc1, images) for place, (accuracy, nc1) in enumerate(pairs)}


def test_between_equal_accuracies_nc1_decides_and_the_other_way_round() -> None:
    found = score(measured(100, [0.5, 0.7, 0.7, 0.6], [4.0, 2.0, 1.0, 1.0]))
    assert found["2"] > found["1"] > found["0"]
    assert found["2"] > found["3"]


def test_a_clear_lead_in_accuracy_outweighs_nc1() -> None:
    found = score(measured(100, [0.53, 0.49, 0.43], [17.5, 13.7, 20.3]))
    assert found["0"] > found["1"] > found["2"]


@pytest.mark.parametrize("undefined", [float("nan"), float("inf"), 0.0])
def test_an_undefined_nc1_counts_as_the_worst(undefined: float) -> None:
    assert score(measured(50, [0.5, 0.6, 0.6], [undefined, 1.0, 3.0])) == score(
        measured(50, [0.5, 0.6, 0.6], [3.0, 1.0, 3.0])
    )


def test_without_any_nc1_the_accuracy_decides() -> None:
    found = score(measured(50, [0.5, 0.6], [float("nan"), float("nan")]))
    assert found["1"] > found["0"]


def test_nc1_as_a_second_witness_finds_better_candidates_than_accuracy_alone() -> None:
    chance = random.Random(0)  # noqa: S311
    regret = {"accuracy": 0.0, "score": 0.0}
    for _ in range(300):
        truth = [chance.uniform(0.7, 0.8) for _ in range(6)]
        seen = [sum(chance.random() < share for _ in range(100)) / 100 for share in truth]
        nc1s = [2.718 ** (-20 * (share - 0.75) + chance.gauss(0, 0.3)) for share in truth]
        found = measured(100, seen, nc1s)
        for rule, values in (("accuracy", dict(zip(found, seen, strict=True))), ("score", score(found))):
            regret[rule] += max(truth) - truth[int(max(values, key=values.__getitem__))]
    assert regret["score"] < 0.8 * regret["accuracy"]


def test_names_are_spread_over_equal_shares() -> None:
    names = [str(number) for number in range(16)]
    assert spread_out(names, 6) == ["1", "4", "6", "9", "12", "14"]
    assert spread_out(names, 1) == ["8"]
    assert spread_out(names, 99) == names
