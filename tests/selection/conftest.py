import pytest

from nc_finetune.backbones import Backbone, create_backbone
from nc_finetune.data import ImageData


@pytest.fixture
def data() -> ImageData:
    return ImageData("sklearn:digits", image_size=32, samples_per_class=5, val_size=60, batch_size=16)


@pytest.fixture
def backbone() -> Backbone:
    return create_backbone("test_resnet", None)
