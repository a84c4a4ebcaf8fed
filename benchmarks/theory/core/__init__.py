"""What all experiments share: claims, settings, running, drawing, the page."""

from benchmarks.theory.core.claims import Claim as Claim
from benchmarks.theory.core.claims import largest as largest
from benchmarks.theory.core.claims import smallest as smallest
from benchmarks.theory.core.experiment import Experiment as Experiment
from benchmarks.theory.core.experiment import Findings as Findings
