import re

import torch

from nc_finetune.tuning.page import calibration_fact


def errors(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, ...]:
    return tuple(map(float, re.findall(r"([0-9.]+) %", calibration_fact(logits, labels)["calibration"])))


def test_calibration_is_said_before_and_after_a_temperature_of_other_images() -> None:
    scores = torch.randn(4000, 4)
    labels = torch.distributions.Categorical(logits=scores).sample()
    before, after = errors(4 * scores, labels)
    assert before > 20
    assert after < 4
    broken = torch.cat([4 * scores, torch.full((3, 4), torch.nan)])
    assert errors(broken, torch.cat([labels, torch.zeros(3, dtype=torch.long)])) == (before, after)


def test_nothing_is_said_of_images_that_nobody_was_judged_on() -> None:
    assert calibration_fact(torch.full((9, 3), torch.nan), torch.zeros(9, dtype=torch.long)) == {}
    assert calibration_fact(torch.randn(1, 3), torch.zeros(1, dtype=torch.long)) == {}
