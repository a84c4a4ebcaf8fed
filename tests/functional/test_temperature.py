import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nc_finetune.functional import temperature
from nc_finetune.functional.temperature import HIGHEST, LOWEST


def make_logits(classes: int, scale: float, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (300,), generator=generator)
    values = torch.randn(300, classes, generator=generator, dtype=torch.float64) * noise
    return scale * (values + F.one_hot(target, classes)), target


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("noise", [0.5, 2.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_it_is_the_minimum_of_a_fine_grid(classes: int, noise: float, scale: float) -> None:
    logits, target = make_logits(classes, scale, noise)
    found = temperature(logits, target).item()
    grid = torch.linspace(-0.01, 0.01, 2001, dtype=torch.float64).exp() * found
    wide = torch.logspace(-2, 2, 200, dtype=torch.float64) * found
    losses = {t: F.cross_entropy(logits / t, target).item() for t in (*grid.tolist(), *wide.tolist())}
    assert min(losses, key=losses.__getitem__) == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("sure", [3.0, 8.0])
def test_heavy_tails_do_not_keep_it_from_the_minimum(sure: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 5, generator=generator, dtype=torch.float64).mul(sure).exp()
    target = torch.where(torch.rand(500, generator=generator) < 0.9, logits.argmax(1), torch.arange(500) % 5)
    inverse = (1 / temperature(logits, target)).requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(logits * inverse, target), inverse)
    spread = (logits.amax(1) - logits.amin(1)).mean().item()
    at_bound = temperature(logits, target).item() / spread == pytest.approx(LOWEST)
    assert at_bound or abs(slope.item()) < 1e-9 * spread


def test_scale_offset_order_and_dtype_change_nothing_else() -> None:
    logits, target = make_logits(10, 1.0, 1.0)
    plain = temperature(logits, target)
    offsets = torch.arange(300.0, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(temperature(7 * logits, target), 7 * plain, rtol=1e-10, atol=0)
    torch.testing.assert_close(temperature(logits + offsets, target), plain, rtol=1e-10, atol=0)
    torch.testing.assert_close(temperature(logits.flip(0), target.flip(0)), plain, rtol=1e-10, atol=0)
    torch.testing.assert_close(temperature(logits.float(), target.to(torch.uint8)), plain, rtol=1e-5, atol=0)
    assert plain.shape == ()
    assert plain.dtype == torch.float64


def test_rows_that_are_not_finite_are_left_out() -> None:
    logits, target = make_logits(5, 1.0, 1.0)
    broken = torch.cat([logits, torch.full((2, 5), torch.nan), torch.full((1, 5), torch.inf)])
    found = temperature(broken, torch.cat([target, torch.tensor([0, 1, 2])]))
    torch.testing.assert_close(found, temperature(logits, target))


@pytest.mark.parametrize("sign", [1, -1])
def test_where_all_are_right_or_all_wrong_it_is_the_bound(sign: int) -> None:
    target = torch.arange(12) % 3
    logits = sign * 20 * F.one_hot(target, 3).float()
    assert temperature(logits, target).item() == pytest.approx(20 * (LOWEST if sign > 0 else HIGHEST))


def test_logits_that_say_nothing_have_temperature_one() -> None:
    assert temperature(torch.full((4, 3), 2.0), torch.tensor([0, 1, 2, 0])).item() == 1


def test_what_has_no_temperature_is_refused() -> None:
    logits, target = make_logits(5, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"logits must have shape \(N, K\) and target \(N,\), got \(300, 5, 1\)"):
        temperature(logits[:, :, None], target)
    with pytest.raises(ValueError, match=r"got \(300, 5\) and \(299,\)"):
        temperature(logits, target[1:])
    with pytest.raises(ValueError, match=r"target integers, got torch.float64, torch.float32"):
        temperature(logits, target.float())
    with pytest.raises(ValueError, match=r"labels must be integers in \[0, 5\)"):
        temperature(logits, target + 1)
    with pytest.raises(ValueError, match="must be finite, got none of 300"):
        temperature(logits * torch.nan, target)
    with pytest.raises(ValueError, match="must be finite, got none of 0"):
        temperature(logits[:0], target[:0])
