import warnings

import pytest

from nc_finetune.backbones.preprocessing import Preprocessing, settle_preprocessing

IMAGENET = Preprocessing((0.485,) * 3, (0.229,) * 3, 224, "bicubic")
HALF = Preprocessing((0.5,) * 3, (0.5,) * 3, 224, "bicubic")
LARGE = Preprocessing((0.485,) * 3, (0.229,) * 3, 384, "bicubic")
BILINEAR = Preprocessing((0.485,) * 3, (0.229,) * 3, 224, "bilinear")


def test_what_the_weights_say_goes_before_what_is_usual() -> None:
    assert settle_preprocessing("w", None, HALF, [IMAGENET]) is HALF


def test_what_the_user_says_goes_before_what_is_usual_and_needs_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert settle_preprocessing("w", HALF, None, [IMAGENET, HALF]) is HALF


def test_user_may_train_at_another_size() -> None:
    assert settle_preprocessing("w", LARGE, IMAGENET, []) is LARGE


@pytest.mark.parametrize(("given", "wording"), [(HALF, "mean 0.5/0.5/0.5"), (BILINEAR, "bilinear interpolation")])
def test_contradiction_is_an_error_that_gives_both(given: Preprocessing, wording: str) -> None:
    with pytest.raises(ValueError, match=f"w were trained with mean 0.485.* not .*{wording}"):
        settle_preprocessing("w", given, IMAGENET, [])


def test_what_is_unknown_and_differs_among_weights_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"w do not say .* mean 0.5/0.5/0.5.* is assumed; pass preprocessing="):
        assert settle_preprocessing("w", None, None, [HALF, IMAGENET]) is HALF


def test_sizes_and_filters_that_differ_are_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert settle_preprocessing("w", None, None, [IMAGENET, LARGE, BILINEAR]) is IMAGENET
