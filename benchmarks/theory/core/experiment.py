"""An experiment: settings from YAML, findings, a picture of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from jsonargparse import ArgumentParser
from matplotlib.figure import Figure

from benchmarks.theory.core.claims import Claim

SETTINGS_FOLDER = Path(__file__).parent.parent / "settings"
S = TypeVar("S")


@dataclass(frozen=True)
class Findings:
    """What an experiment found.

    Attributes:
        claims: The statements, checked.
        curves: What the picture shows, as plain lists and numbers.
        description: What is to be seen in the picture, for whoever cannot see it.
        notes: What else is worth printing.
    """

    claims: list[Claim]
    curves: dict[str, Any]
    description: str
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every claim holds."""
        return all(claim.passed for claim in self.claims)


@dataclass(frozen=True)
class Experiment(Generic[S]):
    """One experiment of the bench.

    Attributes:
        name: Its name on the command line and of its files.
        title: Heading on the page.
        source: Where the claims are from.
        settings: Dataclass of its numbers.
        run: Measures, given the settings.
        draw: Draws the curves of its findings.
    """

    name: str
    title: str
    source: str
    settings: type[S]
    run: Callable[[S], Findings]
    draw: Callable[[Mapping[str, Any]], Figure]

    def load_settings(self, short: bool = False, file: Path | None = None) -> S:
        """Read the settings: the full form, and over it what the short form changes."""
        forms = yaml.safe_load((file or SETTINGS_FOLDER / f"{self.name}.yaml").read_text(encoding="utf-8"))
        chosen = {**forms["full"], **(forms["short"] if short else {})}
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(self.settings)
        loaded = parser.instantiate_classes(parser.parse_object(chosen))
        return self.settings(**loaded.as_dict())

    def measure(self, settings: S) -> Findings:
        """Run it; what the measures warn about (undefined values) ends as ``nan`` in a claim, which then fails."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is undefined and reported as nan")
            return self.run(settings)
