import pytest

from nc_finetune.errors import missing_extra, unknown_name


def test_near_matches_come_first_and_all_names_after() -> None:
    error = unknown_name("layer", "layer3.9", ["layer3.0", "layer3.1", "stem"])
    assert str(error) == (
        "unknown layer 'layer3.9'; did you mean 'layer3.1' or 'layer3.0'? Valid: layer3.0, layer3.1, stem"
    )


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert str(unknown_name("split", "xyz", ["train", "val"])) == "unknown split 'xyz'. Valid: train, val"


def test_at_most_three_names_are_suggested() -> None:
    message = str(unknown_name("layer", "blocks.x", [f"blocks.{i}" for i in range(9)]))
    assert message.partition("?")[0].count("'blocks.") == 1 + 3


def test_names_may_come_from_an_iterator() -> None:
    assert str(unknown_name("split", "tran", iter(["train"]))).endswith("did you mean 'train'? Valid: train")


def test_unknown_name_is_a_value_error_for_the_caller_to_raise() -> None:
    with pytest.raises(ValueError, match="unknown split"):
        raise unknown_name("split", "a", ["b"])


def test_missing_extra_says_what_to_install() -> None:
    error = missing_extra("altair", "report", "writing reports")
    assert isinstance(error, ImportError)
    assert str(error) == "writing reports needs the package 'altair': pip install \"nc-finetune[report]\""
