"""The examples of one's own loss and baseline: each is one file, and runs."""

from pathlib import Path

import pytest

from crops.config import TrainingConfig, load_config
from crops.errors import CropsError
from crops.losses import LOSSES, find_loss
from crops.training import train

EXAMPLES = Path(__file__).parents[2] / "examples" / "extending"


def test_a_loss_of_ones_own_is_named_in_the_settings_and_trains(toy, random_encoder, tmp_path):
    config = TrainingConfig(
        init=str(random_encoder), loss=f"{EXAMPLES / 'loss.py'}:SMOOTH", steps=20, batch_queries=8
    )
    plain = train(toy, tmp_path / "plain", config.model_copy(update={"loss": "h_infonce"}), seed=0)
    own = train(toy, tmp_path / "own", config, seed=0)
    assert own["loss"] < plain["loss"]  # the anchors of label 1 weigh half


def test_every_loss_of_the_table_is_there_and_says_what_it_does():
    assert all(callable(loss.load()) and loss.help for loss in LOSSES.values())


@pytest.mark.parametrize(("name", "message"), [
    ("h_infonse", r"'training.loss' = 'h_infonse': .*known: h_infonce, .*Did you mean 'h_infonce'"),
    ("none.py:LOSS", "none.py:LOSS cannot be loaded"),
    (f"{EXAMPLES / 'loss.py'}:ROUGH", "ROUGH cannot be loaded: AttributeError: .*no attribute 'ROUGH'"),
    ("crops.losses.functions:h_infonce", "is no row of the table of losses"),
])  # fmt: skip
def test_a_loss_that_is_not_there_is_refused_with_its_remedy(tmp_path, name, message):
    with pytest.raises(CropsError, match=message):
        load_config(training__loss=name)
    with pytest.raises(CropsError):
        find_loss(name)
    (tmp_path / "mine.py").write_text("LOSS = undefined")
    with pytest.raises(CropsError, match=r"mine.py:LOSS cannot be loaded: NameError: .*'undefined'"):
        find_loss(f"{tmp_path / 'mine.py'}:LOSS")
