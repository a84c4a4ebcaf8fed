"""The row of `tune` in the report of a grid."""

from benchmarks.fair import label_of, name_of, samples
from nc_finetune.run.grid import BackboneSpec, DatasetSpec, Grid, MethodSpec


def test_runs_are_named_as_files_can_be() -> None:
    grid = Grid(
        backbones=[BackboneSpec(name="test_resnet", weights=None)],
        datasets=[DatasetSpec(source="uoft-cs/cifar10"), DatasetSpec(source="sklearn:digits", name="digits")],
        methods=[MethodSpec(method="LayerReadout")],
        samples_per_class=[20],
    )
    hub, digits = samples(grid)
    assert name_of(hub, label_of(False)) == "uoft-cs_cifar10-test_resnet-tune-n20-s0"
    assert name_of(digits, label_of(True)) == "digits-test_resnet-tune_larger_images-n20-s0"
