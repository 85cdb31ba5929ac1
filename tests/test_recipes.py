"""Recipes: settings that go together, and options that contradict them."""

import operator
import re
from pathlib import Path

import pytest

import crops
from crops.cli.options import of_recipe
from crops.config import RECIPES, RunConfig, load_config, with_recipe
from crops.errors import CropsError
from crops.simulation import own_training


def of(run, names):
    return {name: operator.attrgetter(name)(run) for name in names}


def test_the_paper_is_what_runs_by_default_and_both_recipes_say_the_same_settings():
    assert of(RunConfig(), RECIPES["paper"]) == RECIPES["paper"]
    assert RECIPES["paper"].keys() == RECIPES["recommended"].keys()
    assert RECIPES["paper"] != RECIPES["recommended"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_sets_its_settings_and_leaves_the_others(recipe):
    run = load_config(recipe=recipe, training__encoder="minilm", training__steps=7)
    assert of(run, RECIPES[recipe]) == RECIPES[recipe]
    assert (run.training.steps, run.training.learning_rate) == (7, 2e-5)
    assert with_recipe(load_config(training__encoder="minilm", training__steps=7), recipe) == run
    assert (of_recipe(run), of_recipe(RunConfig())) == (f" --recipe {recipe}", "")


def test_an_option_that_says_the_same_is_no_contradiction_and_another_is_refused_by_its_name():
    fields = RECIPES["recommended"]["document.fields"]
    assert load_config(recipe="recommended", document__fields=list(fields)).document.fields == fields
    with pytest.raises(CropsError) as refused:
        load_config(None, {"training.loss": "--loss"}, recipe="paper", training__loss="nce")
    assert str(refused.value) == (
        "--loss = 'nce' contradicts --recipe paper, whose value is 'h_infonce'; leave one of the two out"
    )


def test_the_documentation_has_the_settings_of_both():
    text = (Path(__file__).parents[1] / "docs" / "engine.md").read_text()
    rows = re.findall(r"^\| `([a-z_.]+)` \| `(.*)` \| `(.*)` \|$", text, re.MULTILINE)
    told = {name: values for name, *values in rows if name in RECIPES["paper"]}
    for place, recipe in enumerate(RECIPES):
        written = {
            name: ",".join(value) if isinstance(value, tuple) else str(value)
            for name, value in RECIPES[recipe].items()
        }
        assert {name: values[place] for name, values in told.items()} == written


def test_a_file_that_contradicts_is_named(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('recipe = "recommended"\n[document]\nfields = ["keyword"]\n')
    with pytest.raises(CropsError, match=r"run.toml: setting 'document.fields' = \('keyword',\) contradicts"):
        load_config(file)
    with pytest.raises(CropsError, match=r"setting 'recipe' = 'papr'.* Did you mean 'paper'"):
        load_config(recipe="papr")
    file.write_text('recipe = "paper"\nengine = 3\n')
    with pytest.raises(CropsError, match="'engine' = 3"):
        load_config(file)


def test_a_recipe_does_not_change_the_simulated_platform():
    plain = own_training(load_config(training__steps=7))
    assert (plain.loss, plain.docs_per_source, plain.steps) == ("infonce_binary", 4, 7)
    assert {own_training(load_config(recipe=recipe, training__steps=7)) for recipe in RECIPES} == {plain}


def test_a_demo_refuses_what_belongs_to_its_other_kind(tmp_path):
    with pytest.raises(CropsError, match="--positive-label .* --judged"):
        crops.demo(tmp_path / "out", positive_label=2)
    for option, value in {"recipe": "recommended", "size": "tiny", "language": "zh"}.items():
        with pytest.raises(CropsError, match=f"--{option} is of the simulation"):
            crops.demo(tmp_path / "out", judged=tmp_path, **{option: value})
    assert not (tmp_path / "out").exists()
