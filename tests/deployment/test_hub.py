"""Models to the hub and back, by a server on the loopback device."""

import errno
import json
import re
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import fake_hub
import pytest
import torch
import yaml
from fake_hub import FakeHub
from markdown_it import MarkdownIt
from safetensors import safe_open
from safetensors.torch import save_file

from nc_finetune import ImageClassifier, load_delta, save_delta
from nc_finetune.backbones import TimmBackbone
from nc_finetune.cli import main
from nc_finetune.deployment import Accuracy, ModelFacts, check_push, load_model, model_card, push_model
from nc_finetune.deployment.hub import hub_errors
from nc_finetune.deployment.model_facts import FACTS, facts_beside
from nc_finetune.errors import UnavailableError
from nc_finetune.files.delta import METADATA_KEY
from nc_finetune.methods import LayerFinetuning

NAMES = ["cat", "dog", "owl_2"]
FACTS_OF_TEST = ModelFacts(
    data="pets",
    class_counts={"cat": 20, "dog": 1200, "owl_2": 5},
    accuracies=(
        Accuracy("test images, looked at once", 0.75, 0.7, 0.8, 120),
        Accuracy("training images, each by what others teach", 0.8125, 0.75, 0.87, 1225),
    ),
    calibration="an error of 2.1 %",
    decision="chosen: layer FT of layer2.0",
)


@pytest.fixture(autouse=True)
def _logged_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub.without_login(monkeypatch, tmp_path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub, where somebody is logged in."""
    with fake_hub.logged_in(monkeypatch, tmp_path) as served:
        yield served


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., tuple[Path, ImageClassifier]]:
    """A delta on weights of a file, so that it can be loaded without a network, and the model that it is of."""

    def make(facts: ModelFacts | None = FACTS_OF_TEST) -> tuple[Path, ImageClassifier]:
        torch.manual_seed(0)
        base = tmp_path / "base.safetensors"
        save_file(TimmBackbone("test_resnet", None, channels_last=False).model.state_dict(), base)
        model = ImageClassifier(TimmBackbone("test_resnet", str(base)), 3, method=LayerFinetuning("layer2.0")).eval()
        path = tmp_path / "tuned" / "model.safetensors"
        save_delta(model, path, NAMES)
        if facts is not None:
            facts.write_beside(path)
        return path, model

    return make


pytestmark = pytest.mark.filterwarnings("ignore:.*builds on the file:UserWarning")


# --- to the hub and back


def test_what_is_pushed_is_loaded_again_with_the_same_logits(hub: FakeHub, make_model: Callable[..., Any]) -> None:
    path, model = make_model()
    assert push_model(path, "user/pets") == f"{hub.endpoint}/user/pets"
    assert hub.files("user/pets")["model.safetensors"] == path.read_bytes()
    assert sorted(hub.files("user/pets")) == ["README.md", "model.safetensors"]
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_delta("hub:user/pets").eval()(images), model(images))


def test_a_repository_is_private_unless_it_is_to_be_public(hub: FakeHub, make_model: Callable[..., Any]) -> None:
    path, _ = make_model()
    push_model(path, "user/mine")
    push_model(path, "user/ours", public=True)
    assert hub.private == {"user/mine": True, "user/ours": False}


def test_a_folder_of_a_tuning_is_a_model_and_its_report_stays(hub: FakeHub, make_model: Callable[..., Any]) -> None:
    path, _ = make_model()
    path.with_name("report.html").write_text("photos of people", encoding="utf-8")
    push_model(path.parent, "user/pets")
    assert sorted(hub.files("user/pets")) == ["README.md", "model.safetensors"]
    assert b"75.0 %" in hub.files("user/pets")["README.md"]


def test_a_revision_is_loaded_by_its_name(hub: FakeHub, make_model: Callable[..., Any]) -> None:
    path, _ = make_model()
    push_model(path, "user/pets")
    first = next(name for name in hub.repos["user/pets"] if name != "main")
    hub.commit("user/pets", {"model.safetensors": b"broken"})
    assert load_delta(f"hub:user/pets@{first}").num_classes == 3
    with pytest.raises(ValueError, match=r"is damaged or no \.safetensors file"):
        load_delta("hub:user/pets")


def test_nothing_but_the_delta_is_fetched(hub: FakeHub, make_model: Callable[..., Any]) -> None:
    path, _ = make_model()
    hub.commit("user/pets", {"model.safetensors": path.read_bytes(), "model.pkl": b"x", "code.py": b"x"})
    load_model("hub:user/pets")
    assert {asked.rpartition("/")[2] for asked in hub.asked} == {"model.safetensors"}


def test_without_a_network_what_was_fetched_is_taken(
    hub: FakeHub, make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = make_model()
    push_model(path, "user/pets")
    load_delta("hub:user/pets")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert load_delta("hub:user/pets").num_classes == 3


def test_a_model_of_the_hub_names_no_classes_of_others(hub: FakeHub, make_model: Callable[..., Any]) -> None:
    path, _ = make_model()
    evil = with_metadata(path, method={"class_path": "os.system", "init_args": {"command": "true"}})
    hub.commit("user/pets", {"model.safetensors": evil.read_bytes()})
    with pytest.raises(ValueError, match=r"os\.system is outside .* pass trust=True"):
        load_delta("hub:user/pets")


def test_a_model_of_the_hub_on_other_weights_is_refused(hub: FakeHub, make_model: Callable[..., Any]) -> None:
    path, _ = make_model()
    push_model(path, "user/pets")
    other = ImageClassifier(TimmBackbone("test_resnet", None), 3, method=LayerFinetuning("layer2.0"))
    with pytest.raises(ValueError, match="the delta belongs to another base"):
        load_delta("hub:user/pets", other)


def test_update_adds_to_a_repository(hub: FakeHub, make_model: Callable[..., Any], tmp_path: Path) -> None:
    path, _ = make_model()
    push_model(path, "user/pets")
    (tmp_path / "card.md").write_text("# Mine", encoding="utf-8")
    push_model(path, "user/pets", update=True, card=tmp_path / "card.md")
    assert hub.files("user/pets")["README.md"] == b"# Mine"
    assert all(message.startswith("Upload by nc-finetune") for message in hub.messages)


@pytest.mark.parametrize(
    ("there", "public", "message"),
    [
        (
            False,
            False,
            r"user/pets is public on the hub, and the model was to be private; nothing was pushed: say --pub",
        ),
        (
            True,
            True,
            r"user/pets is private on the hub, and the model was to be public; nothing was pushed: leave --pub",
        ),
    ],
)
def test_update_shows_and_hides_nothing_unasked(
    there: bool, public: bool, message: str, hub: FakeHub, make_model: Callable[..., Any]
) -> None:
    path, _ = make_model()
    hub.commit("user/pets", {"model.safetensors": b"old"})
    hub.private["user/pets"] = there
    with pytest.raises(ValueError, match=message):
        push_model(path, "user/pets", public=public, update=True)
    assert hub.files("user/pets") == {"model.safetensors": b"old"}
    push_model(path, "user/pets", public=not there, update=True)
    assert hub.files("user/pets")["model.safetensors"] == path.read_bytes()


# --- bad input: one clear error each


def test_pushing_without_a_login_asks_nobody(
    hub: FakeHub, make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = make_model()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="pushing needs a login: run `hf auth login` once, or set HF_TOKEN"):
        push_model(path, "user/pets")
    assert hub.asked == []


def test_a_token_that_the_hub_does_not_know_is_an_error(
    hub: FakeHub, make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = make_model()
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    with pytest.raises(ValueError, match=r"the hub lets this login not write to user/pets: .*log in by"):
        push_model(path, "user/pets")
    with pytest.raises(ValueError, match=r"the hub lets this login not write to user/new: .*log in by"):
        check_push("user/new")


def test_a_login_that_may_not_read_is_told_so(hub: FakeHub) -> None:
    hub.refuses_reading = True
    with pytest.raises(ValueError, match=r"the hub lets this login not read user/pets: 403 Forbidden.*; log in by"):
        load_delta("hub:user/pets")


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), (OSError, "No space left on device")),
        (PermissionError(errno.EACCES, "Permission denied", "cache"), (PermissionError, "Permission denied: 'cache'")),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), (UnavailableError, r"cannot be reached.*by peer")),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), (UnavailableError, r"cannot be reached.*timed out")),
        (socket.gaierror(socket.EAI_NONAME, "name not known"), (UnavailableError, r"cannot be reached.*not known")),
    ],
)
def test_an_error_of_this_machine_is_not_one_of_the_network(
    error: Exception, shown: tuple[type[Exception], str]
) -> None:
    with pytest.raises(shown[0], match=shown[1]), hub_errors("user/pets"):
        raise error


def test_a_repository_that_exists_is_an_error_and_stays(hub: FakeHub, make_model: Callable[..., Any]) -> None:
    path, _ = make_model()
    hub.commit("user/pets", {"model.safetensors": b"theirs"})
    with pytest.raises(ValueError, match=r"user/pets exists on the hub; choose another name, or add to it with --upd"):
        push_model(path, "user/pets")
    with pytest.raises(ValueError, match="user/pets exists on the hub; choose another name, or push the model there"):
        check_push("user/pets")
    check_push("user/others")
    assert hub.files("user/pets") == {"model.safetensors": b"theirs"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("hub:user/nothing", r"there is no 'user/nothing' at http://127.* or it is private"),
        ("hub:user/pets@v9", r"user/pets has no revision 'v9' on the hub"),
        ("hub:user/pets@v9.0+cpu", r"user/pets has no revision 'v9\.0"),
        ("hub:user/pets@v 9", "an id of the hub is user/name"),
        ("hub:user/other", r"user/other holds no model\.safetensors: it is no delta of nc-finetune"),
        ("hub:pets", r"an id of the hub is user/name, or user/name@revision to load, got 'hub:pets'"),
        ("hub:user/../pets", "an id of the hub is user/name"),
    ],
)
def test_an_id_that_leads_nowhere_is_an_error(
    asked: str, message: str, hub: FakeHub, make_model: Callable[..., Any]
) -> None:
    path, _ = make_model()
    push_model(path, "user/pets")
    hub.commit("user/other", {"weights.bin": b"x"})
    with pytest.raises(ValueError, match=message):
        load_delta(asked)


def test_an_old_delta_is_neither_pushed_nor_loaded(hub: FakeHub, make_model: Callable[..., Any]) -> None:
    path, _ = make_model()
    old = with_metadata(path, format_version=0)
    with pytest.raises(ValueError, match="has a description of version 0, this nc-finetune reads 1"):
        push_model(old, "user/pets")
    assert hub.repos == {}
    hub.commit("user/pets", {"model.safetensors": old.read_bytes()})
    with pytest.raises(ValueError, match="has a description of version 0, this nc-finetune reads 1"):
        load_delta("hub:user/pets")


def test_no_network_is_an_error(make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = make_model()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    for ask in (lambda: push_model(path, "user/pets"), lambda: check_push("user/pets")):
        with pytest.raises(
            UnavailableError,
            match=r"the hub at http://127\.0\.0\.1:9 cannot be reached, or does not answer .*; check the network$",
        ):
            ask()


@pytest.mark.slow  # the client tries for some seconds
def test_no_network_to_load_by_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9 cannot be reached.* or take a file in place of user/p"):
        load_delta("hub:user/pets")


def test_a_missing_extra_is_named(make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = make_model()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for ask in (lambda: push_model(path, "user/pets"), lambda: load_delta("hub:user/pets")):
        with pytest.raises(ImportError, match=r"pip install \"nc-finetune\[hub\]\""):
            ask()


def test_a_push_that_fails_in_its_midst_says_what_is_left(hub: FakeHub, make_model: Callable[..., Any]) -> None:
    path, _ = make_model()
    hub.refuses_commits = True
    with pytest.raises(UnavailableError, match="disk of the hub is full; nothing was pushed, and user/pets is there"):
        push_model(path, "user/pets")


@pytest.mark.parametrize(
    ("name", "message"),
    [("last.ckpt", r"last\.ckpt is a checkpoint, with all weights"), ("none.safetensors", "no delta at none")],
)
def test_what_is_no_delta_is_not_pushed(name: str, message: str, hub: FakeHub) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        push_model(name, "user/pets")
    assert hub.asked == []


def test_a_licence_beside_a_card_is_refused(make_model: Callable[..., Any], tmp_path: Path) -> None:
    path, _ = make_model()
    with pytest.raises(ValueError, match="says its licence itself"):
        push_model(path, "user/pets", licence="mit", card=tmp_path / "card.md")


# --- the card


def front_and_text(card: str) -> tuple[dict[str, Any], str]:
    _, front, text = card.split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_says_what_was_measured(make_model: Callable[..., Any]) -> None:
    path, model = make_model()
    front, text = front_and_text(model_card(path, "user/pets"))
    assert (front["library_name"], front["pipeline_tag"]) == ("nc-finetune", "image-classification")
    assert "license" not in front
    (result,) = front["model-index"][0]["results"]
    assert (result["dataset"]["name"], result["metrics"][0]["value"]) == ("pets", 0.75)
    assert "| test images, looked at once | 120 | 75.0 % | 70.0 to 80.0 % |" in text
    assert "Calibration: an error of 2.1 %." in text
    assert "fine-tuned on 1,225 images of pets" in text
    assert "cat (20), dog (1,200), owl_2 (5)" in text
    share = 100 * model.tuned_parameters / model.total_parameters
    assert re.search(rf"\| tuned \| [\d,]+ parameters, {share:.1f}\d % of the model \|", text)
    assert 'load_delta("hub:user/pets", built)' in text
    assert "Not chosen yet: it is for who publishes the model to say" in text


def test_the_card_has_the_hashes_and_no_path(make_model: Callable[..., Any], tmp_path: Path) -> None:
    path, _ = make_model()
    card = model_card(path, "user/pets")
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()[METADATA_KEY])
    assert content["frozen_sha256"] in card
    assert str(tmp_path) not in card
    assert "Its pre-trained weights are no public ones" in card
    assert "the pre-trained weights come from whoever has them" in card
    assert "nc-finetune predict" not in card  # which could not build the model


EVIL = "a](http://evil) <img src=x onerror=1> | x\n\n# b &lt; `c` **d** www.evil.org"


def test_nothing_that_others_wrote_acts_in_the_card(make_model: Callable[..., Any]) -> None:
    path, _ = make_model(facts=None)
    said = {"class_names": [EVIL, "dog", EVIL], **dict.fromkeys(["backbone_name", "image_size", "interpolation"], EVIL)}
    path.write_bytes(with_metadata(path, **said).read_bytes())
    ModelFacts(EVIL, {EVIL: 2, "dog": 3}, (Accuracy(EVIL, 0.5, 0.4, 0.6, 5),), EVIL, f"chosen: {EVIL}").write_beside(
        path
    )
    front, text = front_and_text(model_card(path, "user/pets", licence=EVIL))
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == EVIL
    assert front["license"] == EVIL
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert not re.search("<(a|img|em|strong|ul|ol)\\b", html)
    assert (html.count("<h1>"), html.count("<code>")) == (1, 3)  # its own
    plain = escape(" ".join(EVIL.split()), quote=False).replace("://", ":\u2060//").replace("www", "www\u2060")
    assert html.count(plain) == 11
    columns = [len(re.findall("<t[hd]>", row)) for row in html.split("<tr>")[1:]]
    assert columns == [4, 4] + [2] * (len(columns) - 2)


def test_a_card_without_facts_claims_no_accuracy(make_model: Callable[..., Any]) -> None:
    path, _ = make_model(facts=None)
    front, text = front_and_text(model_card(path, "user/pets", licence="mit"))
    assert front["license"] == "mit"
    assert "model-index" not in front
    assert "Who published it has not said." in text


def test_facts_of_another_model_are_not_taken(make_model: Callable[..., Any]) -> None:
    path, _ = make_model()
    path.write_bytes(with_metadata(path, num_classes=3, class_names=["a", "b", "c"]).read_bytes())
    assert facts_beside(path) is None


def test_damaged_facts_are_an_error(make_model: Callable[..., Any]) -> None:
    path, _ = make_model()
    path.with_name(FACTS).write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"facts\.json is damaged or of another version"):
        model_card(path, "user/pets")


def test_the_card_names_public_weights_and_their_licence(tmp_path: Path) -> None:
    model = ImageClassifier("test_resnet", 3, weights=None)
    save_delta(model, tmp_path / "it.safetensors", NAMES)
    path = with_metadata(tmp_path / "it.safetensors", weights="r160_in1k")
    front, text = front_and_text(model_card(path, "user/pets"))
    assert front["base_model"] == "timm/test_resnet.r160_in1k"
    assert "That of the pre-trained weights, apache-2.0, holds beside it" in text
    assert "no public ones" not in text
    assert "the pre-trained weights come from where they are public" in text
    assert 'load_delta("hub:user/pets")' in text


def test_random_weights_are_warned_of(hub: FakeHub, tmp_path: Path) -> None:
    save_delta(ImageClassifier("test_resnet", 3, weights=None), tmp_path / "it.safetensors", NAMES)
    with pytest.warns(UserWarning, match="builds on random weights, or others that it does not name"):
        push_model(tmp_path / "it.safetensors", "user/pets")


def test_facts_come_back_as_they_were(make_model: Callable[..., Any]) -> None:
    path, _ = make_model()
    assert facts_beside(path) == FACTS_OF_TEST
    changed = replace(FACTS_OF_TEST, decision="")
    changed.write_beside(path)
    assert facts_beside(path) == changed


# --- the command


def test_the_command_pushes_and_predicts_by_the_id(
    hub: FakeHub, make_model: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tuning_photos import write_photos

    path, _ = make_model()
    assert main(["push", str(path.parent), "user/pets", "--public"]) == 0
    assert capsys.readouterr().out == f"Model: {hub.endpoint}/user/pets\n"
    photos = write_photos(tmp_path / "photos")
    out = tmp_path / "out.csv"
    assert main(["predict", "hub:user/pets", str(photos / "class0"), "--image-size", "32", "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8").startswith("file,prediction,cat,dog,owl_2")


def test_the_command_writes_the_card_alone(hub: FakeHub, make_model: Callable[..., Any], tmp_path: Path) -> None:
    path, _ = make_model()
    assert main(["push", str(path), "user/pets", "--card-only", str(tmp_path / "card.md")]) == 0
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == model_card(path, "user/pets")
    assert hub.asked == []


def test_the_command_says_in_one_line_what_is_wrong(
    make_model: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = make_model()
    assert main(["push", str(path), "user/pets"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "nc-finetune: pushing needs a login: run `hf auth login` once, or set HF_TOKEN to a token that may write"
    ]


def with_metadata(path: Path, **changes: Any) -> Path:
    """Write a copy of a delta whose description says something else."""
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()[METADATA_KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    if "weights" in changes:
        content["config"]["backbone"]["init_args"]["weights"] = changes.pop("weights")
    content["config"] |= changes
    other = path.with_name("other.safetensors")
    save_file(tensors, other, {"format": "pt", METADATA_KEY: json.dumps(content)})
    return other
