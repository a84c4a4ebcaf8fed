"""The models of the theory of neural collapse, run and checked.

Each claim of the slides and papers is a small experiment that passes or fails and draws the picture of its slide:

    python -m benchmarks.theory                       all of them, into runs/theory
    python -m benchmarks.theory parsimony --short     one of them, in its short form
    python -m benchmarks.theory --help                their names

An experiment is a module of ``experiments``, its numbers are in the YAML of the same name in ``settings``. The measures
of collapse are those of ``nc_finetune``: what is known in closed form here is ground truth for them.
"""
