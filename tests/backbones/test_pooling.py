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


# --- several statistics side by side


@pytest.mark.parametrize("channels_last", [False, True])
def test_statistics_of_a_map_stand_side_by_side_in_their_order(channels_last: bool) -> None:
    features = torch.randn(2, 5, 3, 4)
    given = features.permute(0, 2, 3, 1) if channels_last else features
    positions = features.flatten(2)
    expected = torch.cat([positions.mean(2), positions.std(2, correction=0)], dim=1)
    for pooling in (("mean", "std"), ("std", "mean")):
        torch.testing.assert_close(pool_features(given, channels_last=channels_last, pooling=pooling), expected)
    torch.testing.assert_close(
        pool_features(given, channels_last=channels_last, pooling=("std",)), positions.std(2, correction=0)
    )


@pytest.mark.parametrize(("prefix", "class_token"), [(0, False), (1, True), (3, True), (3, False)])
def test_statistics_of_tokens_leave_prefix_tokens_out_and_keep_the_class_token(prefix: int, class_token: bool) -> None:
    tokens = torch.randn(2, 3 + 6, 5)
    found = pool_features(tokens, prefix, has_class_token=class_token, pooling=("mean", "std"))
    patches = tokens[:, prefix:]
    front = [tokens[:, 0]] if class_token else []
    torch.testing.assert_close(found, torch.cat([*front, patches.mean(1), patches.std(1, correction=0)], dim=1))
    assert pool_features(tokens, prefix, has_class_token=class_token, pooling=("std",)).shape == (2, 5)


def test_statistics_of_a_vector_are_the_vector() -> None:
    vector = torch.randn(2, 5)
    assert pool_features(vector, 1, pooling=("mean", "std")) is vector


def test_spread_of_half_precision_does_not_overflow() -> None:
    output = (torch.randn(2, 3, 8, 8) * 1e4).half()
    found = pool_features(output, pooling=("std",))
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), output.float().flatten(2).std(2, correction=0), rtol=1e-3, atol=0)


def test_spread_of_equal_positions_is_zero_with_a_gradient_of_zero() -> None:
    output = torch.ones(2, 3, 4, 4, requires_grad=True)
    spread = pool_features(output, pooling=("std",))
    spread.sum().backward()
    assert (spread == 0).all()
    assert output.grad is not None
    assert (output.grad == 0).all()


@pytest.mark.parametrize("shape", [(5,), (2, 5, 3, 3, 3)])
def test_statistics_of_other_dimensions_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must have 2 \(N, D\), 3 \(N, T, D\) or 4"):
        pool_features(torch.zeros(shape), pooling=("mean",))


def test_statistics_where_samples_come_second() -> None:
    tokens = torch.randn(5, 2, 8)
    found = BlockLayout(num_prefix_tokens=1, tokens_first=True).pool(tokens, ("mean",))
    torch.testing.assert_close(found, torch.cat([tokens[0], tokens[1:].mean(0)], dim=1))
