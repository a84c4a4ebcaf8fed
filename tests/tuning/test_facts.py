"""What a tuning leaves to programs and to the hub."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fake_hub
import pytest
import torch
from fake_hub import FakeHub
from tuning_photos import write_photos

from nc_finetune.deployment.model_facts import FACTS, facts_beside
from nc_finetune.tuning import tune
from nc_finetune.tuning.estimate import Estimate
from nc_finetune.tuning.facts import model_facts


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub.logged_in(monkeypatch, tmp_path) as served:
        yield served


@pytest.mark.slow
def test_what_was_measured_lies_beside_the_model_and_goes_to_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    photos, lines = write_photos(tmp_path / "photos"), list[str]()
    found = tune(
        photos,
        tmp_path / "out",
        backbones=["test_resnet=null"],
        image_size=32,
        minutes=0.01,
        test="0.25",
        push_to_hub="user/photos",
        tell=lines.append,
    )
    facts = facts_beside(found.model_file)
    assert facts is not None
    assert found.test is not None
    assert facts.data == "photos"
    assert facts.class_counts == {"class0": 9, "class1": 9, "class2": 9}
    expected = (found.test, found.estimate)
    assert [(one.accuracy, one.low, one.high, one.images) for one in facts.accuracies] == [
        (one.accuracy, one.low, one.high, one.images) for one in expected
    ]
    assert facts.calibration.startswith("an error of ")
    assert str(tmp_path) not in (tmp_path / "out" / FACTS).read_text(encoding="utf-8")
    card = hub.files("user/photos")["README.md"].decode()
    assert f"| {found.test.images} | {100 * found.test.accuracy:.1f} % |" in card
    assert str(tmp_path) not in card
    assert lines[-2] == f"report: {found.report}"  # before the push, which may fail; of random weights no commands
    assert lines[-1] == f"on the hub: {hub.endpoint}/user/photos"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("~/secret/photos", "photos"),
        ("secret/photos", "photos"),
        ("secret/photos/.", "photos"),
        ("secret/photos/..", "secret"),
        ("secret/link", "link"),
        ("/gone/secret/photos", "photos"),
        ("user/flowers", "user/flowers"),
        ("sklearn:digits", "sklearn:digits"),
    ],
)
def test_of_a_path_the_last_part_alone_is_told(
    source: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret" / "photos").mkdir(parents=True)
    (tmp_path / "secret" / "link").symlink_to(tmp_path / "secret" / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    images = SimpleNamespace(labels=[0, 0], indices=[0, 1], bad=None)
    data = SimpleNamespace(source=source, class_names=["cat"], num_classes=1, images=lambda split: images)
    assert model_facts(data, "", Estimate(0.5, 0.4, 0.6, 2), None, "").data == name  # type: ignore[arg-type]


def test_images_that_do_not_decode_are_not_counted() -> None:
    images = SimpleNamespace(labels=[0, 1, 1], indices=[4, 5, 6], bad=torch.tensor([0, 0, 0, 0, 0, 0, 1]))
    data = SimpleNamespace(source="photos", class_names=["cat", "dog"], num_classes=2, images=lambda split: images)
    found = model_facts(data, "", Estimate(0.5, 0.4, 0.6, 2), None, "")  # type: ignore[arg-type]
    assert found.class_counts == {"cat": 1, "dog": 1}


def test_a_repository_that_exists_is_refused_before_any_work(hub: FakeHub, tmp_path: Path) -> None:
    hub.commit("user/photos", {})
    with pytest.raises(ValueError, match="user/photos exists on the hub"):
        tune(write_photos(tmp_path / "photos"), tmp_path / "out", push_to_hub="user/photos")
    assert not (tmp_path / "out").exists()
