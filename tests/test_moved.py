"""Names of before 0.2 still work, and say where they are now."""

import pytest

from nc_finetune import benchmark, results, run


@pytest.mark.parametrize(
    ("name", "home"),
    [("Grid", run), ("read_grid", run), ("run_grid", run), ("Result", results), ("read_results", results)],
)
def test_an_old_name_is_the_new_one_with_a_warning(name: str, home: object) -> None:
    with pytest.warns(DeprecationWarning, match=rf"nc_finetune\.benchmark\.{name} is nc_finetune\.\w+\.{name} since 0"):
        found = getattr(benchmark, name)
    assert found is getattr(home, name)


def test_what_never_was_there_is_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        benchmark.Nothing  # noqa: B018
