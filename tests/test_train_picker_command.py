"""``emdask train-picker`` keeps what `emdask.train_picker` learns."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path

import numpy as np
import pytest

from emdask import cli
from emdask.errors import MissingLibraryError
from emdask.io import save_picks
from emdask.io.weights import Weights, open_weights
from emdask.train_picker_command import propose_diameter
from emdask.trainers import train_picker
from tests import command_line
from tests.fake_micrographs import NAMES, SHAPE, known_picks, write_micrographs


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_micrographs(folder)
    save_picks(known_picks(), folder / "labels.csv")
    return folder


@pytest.fixture
def folder(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Trainer:
    """Stands in for the training itself, which has its own tests."""

    def __init__(self) -> None:
        self.given: dict[str, object] = {}

    def __call__(self, stack: object, labels: object, **given: object) -> Weights:
        # Raises where the function itself would not take them.
        inspect.signature(train_picker).bind(stack, labels, **given)
        self.given = given | {"stack": stack, "labels": labels}
        given["on_progress"]("training, loss 0.5", 1, 2)
        about = {"trained_n_micrographs": "2", "trained_n_labels": "8"}
        return Weights({"a": np.arange(3, dtype=np.float32)}, about)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    trainer = Trainer()
    monkeypatch.setattr("emdask.train_picker_command.train_picker", trainer)
    return trainer


def call(*words: object) -> tuple[int, str, str]:
    return command_line.call("train-picker", *words)


def test_options_reach_the_function(folder, trainer):
    words = ["--picks", "labels.csv", "--diameter-A", 60, "--contrast", "light", "--n-rounds", 2]
    words += ["--n-steps", 7, "--n-micrographs", 5, "--best", 0.4, "--seed", 3, "--device", "cpu"]
    words += ["--start", "simulated", "--pixel-size-A", 2.5]
    words += ["--labelled", 0.25, "--bad-pixels", "replace"]
    code, out, err = call(*NAMES, "a.safetensors", *words)
    assert (code, err) == (0, "")
    given = trainer.given
    assert given.pop("stack").shape == (3, *SHAPE)
    assert given.pop("labels").x_px.tolist() == known_picks().x_px.tolist()
    del given["on_progress"]
    assert given == {
        "diameter_A": 60.0,
        "diameter_px": None,
        "contrast": "light",
        "start": "simulated",
        "n_rounds": 2,
        "n_steps": 7,
        "n_micrographs": 5,
        "labelled": 0.25,
        "best": 0.4,
        "seed": 3,
        "device": "cpu",
        "bad_pixels": "replace",
    }
    first, second = out.splitlines()
    assert first.startswith("learnt from 8 particles in 2 micrographs (")
    assert first.endswith(" s) -> a.safetensors")
    following = "Next: emdask pick *.mrc picked --diameter-A 60 --model a.safetensors"
    assert second == f"{following} --pixel-size-A 2.5"
    kept = open_weights("a.safetensors")
    np.testing.assert_array_equal(kept.arrays["a"], [0, 1, 2])
    assert kept.about["trained_n_labels"] == "8"


def test_labels_that_count_from_below_and_a_new_network(folder, trainer):
    flipped = known_picks()
    flipped["y_px"] = SHAPE[0] - 1 - flipped.y_px
    save_picks(flipped, "flipped.csv")
    words = ["--picks", "flipped.csv", "--flip-y", "--diameter-px", 20, "--start", "none"]
    assert call(*NAMES, "a.safetensors", *words)[0] == 0
    np.testing.assert_allclose(trainer.given["labels"].y_px, known_picks().y_px)
    assert trainer.given["start"] is None


def test_without_labels_there_are_none(folder, trainer):
    assert call(*NAMES, "a.safetensors", "--diameter-px", 20)[0] == 0
    assert trainer.given["labels"] is None
    assert trainer.given["start"] == "general"


def test_defaults_are_those_of_the_function():
    own = inspect.signature(cli.train_picker).parameters
    verb = inspect.signature(train_picker).parameters
    assert verb.keys() - own.keys() == {"on_progress"}
    for name in verb.keys() & own.keys() - {"micrographs"}:
        assert own[name].default == verb[name].default, name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["m1.mrc", "a.zarr", "--diameter-px", 20], "must end in .safetensors"),
        (["m1.mrc", "no/a.safetensors", "--diameter-px", 20], "its folder does not exist"),
        (["m1.mrc", "old.safetensors", "--diameter-px", 20], "exists already"),
        (["m1.mrc", "a.safetensors"], "one of diameter_A and diameter_px must be given"),
        (["no.mrc", "a.safetensors", "--diameter-px", 20], "no.mrc"),
        (["m1.mrc", "a.safetensors", "--diameter-px", 500], "fit into the micrographs"),
        (["m1.mrc", "a.safetensors", "--diameter-px", 20, "--picks", "no.csv"], "no.csv"),
        (["m1.mrc", "a.safetensors", "--diameter-px", 20, "--start", "none"], "it needs labels"),
        (["m1.mrc", "a.safetensors", "--diameter-px", 20, "--best", 2], "best must be a number"),
        (
            ["m2.mrc", "a.safetensors", "--diameter-px", 20, "--picks", "b.csv", "--start", "none"],
            "picks must name micrographs of the stack",
        ),
    ],
)
def test_bad_input_is_a_sentence(folder, words, said):
    Path("old.safetensors").touch()
    Path("b.csv").write_text("micrograph,x_px,y_px\nelse.mrc,1,2\n")
    code, out, err = call(*words)
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    assert said in " ".join(err.split())
    assert not Path("a.safetensors").exists()


def test_a_missing_library_is_a_sentence(folder, monkeypatch):
    def fail(*_: object, **__: object) -> Weights:
        raise MissingLibraryError("cnn: torch cannot be imported.")

    monkeypatch.setattr("emdask.train_picker_command.train_picker", fail)
    code, _, err = call("m1.mrc", "a.safetensors", "--diameter-px", 20)
    assert (code, err) == (2, "emdask: cnn: torch cannot be imported.\n")


def test_the_diameter_is_named_as_it_was_given():
    assert propose_diameter({"diameter_A": None, "diameter_px": 31.5}) == "--diameter-px 31.5"
