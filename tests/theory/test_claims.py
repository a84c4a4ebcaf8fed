"""Every claim of the short forms holds, and fails when an input of its experiment is broken."""

from __future__ import annotations

import importlib
import json
import re
from typing import Any

import pytest
from theory.breakages import BREAKAGES, Breakage
from theory.conftest import Written, measure_short

from benchmarks.theory.core import Claim
from benchmarks.theory.experiments.catalogue import EXPERIMENTS

# What takes a second or two; the others are run with the slow tests.
_QUICK = ("feature_normalization", "loss_landscape")
_QUICK_BREAKAGES = ("no training", "one epoch", "not at the saddle")
# How fast one is beside another is measured where nothing else runs, and no test of anything.
_TIMED = (
    "factorisation: compressed faster (processor time to the goal, wide over compressed)",
    "completion: compressed faster (processor time to the goal, wide over compressed)",
)
_CASES = [(name, breakage) for name, breakages in BREAKAGES.items() for breakage in breakages]


def _case(name: str, *case: Breakage) -> Any:
    """Run an experiment with the slow tests unless it or its case is quick."""
    is_quick = name in _QUICK or any(one.what in _QUICK_BREAKAGES for one in case)
    marks = [] if is_quick else [pytest.mark.slow]
    return pytest.param(name, *case, id=": ".join([name, *(one.what for one in case)]), marks=marks)


_NAMES = [_case(name) for name in EXPERIMENTS]


@pytest.mark.parametrize("name", _NAMES)
def test_every_claim_holds_in_the_short_form(name: str, written: Written) -> None:
    claims = json.loads((written(name) / f"{name}.json").read_text())["claims"]
    assert claims
    assert [claim["name"] for claim in claims if not claim["passed"] and claim["name"] not in _TIMED] == []


@pytest.mark.parametrize(("name", "breakage"), [_case(name, case) for name, case in _CASES])
def test_broken_input_makes_its_claims_fail(name: str, breakage: Breakage, monkeypatch: pytest.MonkeyPatch) -> None:
    if breakage.patch is not None:
        breakage.patch(importlib.import_module(f"benchmarks.theory.experiments.{name}"), monkeypatch)
    claims = measure_short(name, **breakage.settings).claims
    for pattern in breakage.fails:
        found = [claim for claim in claims if re.search(pattern, claim.name)]
        assert found, f"no claim is called {pattern!r}"
        assert [claim.name for claim in found if claim.passed] == []


@pytest.mark.parametrize("name", _NAMES)
def test_every_claim_is_seen_failing(name: str, written: Written) -> None:
    patterns = [pattern for breakage in BREAKAGES[name] for pattern in breakage.fails]
    claims = json.loads((written(name) / f"{name}.json").read_text())["claims"]
    assert [claim["name"] for claim in claims if not any(re.search(part, claim["name"]) for part in patterns)] == []


@pytest.mark.parametrize("comparison", ["close", "at most", "at least"])
def test_nan_never_passes(comparison: str) -> None:
    assert not Claim(name="", measured=float("nan"), tolerance=1.0, comparison=comparison, basis="").passed  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("comparison", "measured", "passed"),
    [
        ("close", 1.2, False),
        ("close", 1.05, True),
        ("at most", 0.0, True),
        ("at most", 1.2, False),
        ("at least", 2.0, True),
        ("at least", 0.8, False),
    ],
)
def test_claim_compares_on_the_right_side(comparison: str, measured: float, passed: bool) -> None:
    claim = Claim(name="", measured=measured, expected=1.0, tolerance=0.1, comparison=comparison, basis="")  # type: ignore[arg-type]
    assert claim.passed is passed
