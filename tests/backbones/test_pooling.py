import pytest
import torch

from nc_finetune.backbones import BlockLayout, pool_features


def test_map_is_averaged_over_space() -> None:
    features = torch.randn(2, 5, 3, 4)
    by_hand = [[features[n, d].sum() / 12 for d in range(5)] for n in range(2)]
    torch.testing.assert_close(pool_features(features), torch.tensor(by_hand))


def test_map_with_channels_last_is_the_same_map() -> None:
    features = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(pool_features(features.permute(0, 2, 3, 1), channels_last=True), pool_features(features))


def test_class_token_is_the_first_token() -> None:
    tokens = torch.randn(2, 7, 5)
    assert torch.equal(pool_features(tokens, num_prefix_tokens=1), tokens[:, 0])


def test_registers_behind_the_class_token_change_nothing() -> None:
    tokens = torch.randn(2, 7, 5)
    assert torch.equal(pool_features(tokens, num_prefix_tokens=3), tokens[:, 0])


def test_without_prefix_tokens_the_mean_is_taken() -> None:
    tokens = torch.randn(2, 7, 5)
    torch.testing.assert_close(pool_features(tokens), sum(tokens[:, t] for t in range(7)) / 7)


def test_registers_without_class_token_are_left_out_of_the_mean() -> None:
    patches = torch.randn(2, 7, 5)
    tokens = torch.cat([torch.full((2, 4, 5), 1e6), patches], dim=1)
    pooled = pool_features(tokens, num_prefix_tokens=4, has_class_token=False)
    torch.testing.assert_close(pooled, pool_features(patches))


def test_vector_comes_back_as_it_is() -> None:
    vector = torch.randn(2, 5)
    assert pool_features(vector, num_prefix_tokens=1) is vector


@pytest.mark.parametrize("shape", [(5,), (2, 5, 3, 3, 3)])
def test_other_dimensions_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must have 2 \(N, D\), 3 \(N, T, D\) or 4 .* got \(" + str(shape[0])):
        pool_features(torch.zeros(shape))


def test_flatten_keeps_every_entry() -> None:
    output = torch.randn(2, 3, 4, 5)
    assert torch.equal(pool_features(output, pooling="flatten"), output.reshape(2, 60))


def test_average_leaves_the_class_token_out() -> None:
    tokens = torch.randn(2, 5, 8)
    torch.testing.assert_close(pool_features(tokens, 1, pooling="average"), tokens[:, 1:].mean(dim=1))


def test_class_token_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="no class token to take"):
        pool_features(torch.randn(2, 5, 8), pooling="class_token")


def test_half_precision_is_averaged_in_the_dtype_that_was_asked_for() -> None:
    output = torch.randn(2, 3, 16, 16).bfloat16()
    expected = output.float().mean(dim=(2, 3))
    assert torch.equal(pool_features(output, dtype=torch.float32), expected)
    assert not torch.equal(pool_features(output).float(), expected)


def test_samples_may_come_second() -> None:
    tokens = torch.randn(5, 2, 8)
    assert torch.equal(BlockLayout(num_prefix_tokens=1, tokens_first=True).pool(tokens), tokens[0])
