"""What a user may ask for, and what is refused before anything is made."""

import operator

import pytest

from crops.config import RECIPES, load_config
from crops.errors import CropsError
from crops.reproduce.design import (
    Cell,
    Design,
    base_run,
    build_world,
    generated_files,
    mined_name,
    parse_seeds,
    parse_target,
    parse_worlds,
    sets_name,
    stored_points,
    world_name,
)


def test_seeds():
    for text, seeds in (("3", [0, 1, 2]), ("4,7", [4, 7]), ("5,", [5]), ("0,1,2", [0, 1, 2])):
        assert parse_seeds(text) == seeds
    for text, message in (
        ("1,2,1", "1 is named twice, and would count twice"),
        ("0", "at least one"),
        ("-1,", "none below 0"),
        ("three", "give how many"),
        (",", "at least one"),
    ):
        with pytest.raises(CropsError, match=message):
            parse_seeds(text)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(CropsError, match="unknown table 'tabel3'.*Did you mean 'table3'"):
        parse_target("tabel3")
    with pytest.raises(CropsError, match="unknown size 'smal'.*Did you mean 'small'"):
        build_world("default", "smal", 0)
    with pytest.raises(CropsError, match="unknown world 'weka'.*Did you mean 'weak'"):
        parse_worlds("default,weka")
    with pytest.raises(CropsError, match="named twice"):
        parse_worlds("null,null")
    with pytest.raises(CropsError, match="unknown method 'crosp'.*Did you mean 'crops'"):
        Design(load_config()).cell(build_world("default", "tiny", 0), "crosp").name()


def test_worlds_differ_in_one_dial():
    assert parse_worlds("all") == ["default", "dcm", "pbm", "null", "weak", "strong", "v2"]
    default = build_world("default", "tiny", 0).platform
    for name, field, value in (
        ("null", "informative", False),
        ("strong", "bubble", "strong"),
        ("pbm", "click_model", "pbm"),
    ):
        platform = build_world(name, "tiny", 0).platform
        assert platform == default.model_copy(update={field: value})


def test_the_judged_world_is_known_by_its_files(tmp_path):
    with pytest.raises(CropsError, match="needs --judged"):
        build_world("judged", "tiny", 0)
    with pytest.raises(CropsError, match=r"docs.parquet: cannot be read"):
        build_world("judged", "tiny", 0, tmp_path)
    for name in ("docs", "queries", "qrels"):
        (tmp_path / f"{name}.parquet").write_text(name)
    before = build_world("judged", "tiny", 0, tmp_path)
    assert before.platform.world == str(tmp_path)
    (tmp_path / "qrels.parquet").write_text("other grades")
    assert world_name(before) != world_name(build_world("judged", "tiny", 0, tmp_path))


def cell(method="crops", seed=0, generated="", point=None, **settings):
    world = build_world("default", "tiny", seed)
    return Cell(world, method, base_run(world, load_config(None, **settings)), generated, point or {})


@pytest.mark.parametrize(("changed", "mined", "tests"), [
    (cell(training__steps=7), False, False),
    (cell(point={"docs_per_source": 2}), False, False),
    (cell(evaluation__recall_k=50), False, False),
    (cell(evaluation__max_ct=50), False, True),
    (cell(engine__feed__relevance=0.7), True, False),
    (cell(relevance__model="none"), True, True),
    (cell(generated="other"), True, False),
    (cell(seed=1), True, True),
    (cell("fs_lr"), False, False),
])  # fmt: skip
def test_what_changes_a_cell_changes_its_name(changed, mined, tests):
    """A mining is made again only for what it depends on; test sets do not depend on how a cell was mined."""
    plain = cell()
    assert changed.name() != plain.name()
    assert (mined_name(changed) != mined_name(plain)) is mined
    assert (sets_name(changed) != sets_name(plain)) is tests
    assert cell("bm25", training__steps=7).name() == cell("bm25").name()  # which does not train


def test_plan_of_the_tables():
    world = build_world("default", "tiny", 0)
    design = Design(load_config(), {"dpr": {"negatives": 4}})
    methods = [one.method for one in design.cells("all", world)]
    distinct = {one.name() for one in design.cells("all", world)}
    # 8 + 7 + 4 rows, of which FS-LR and CroPS are in two and three; 3 watched cells; 9 of other texts;
    # 2 oracles
    assert len(distinct) == 8 + 7 + 4 - 3 + 3 + 9 + 2
    assert {"bm25", "nce", "adore", "p1_at_4", "softmax_ce"} <= set(methods)
    (dpr,) = (one for one in design.cells("table2", world) if one.method == "dpr")
    assert dpr.point == {"negatives": 4}
    assert design.cells("fig6", world) == []


def test_a_second_training_is_a_cell_of_its_own():
    world = build_world("default", "tiny", 0)
    once, twice = (Design(load_config(), trainings=n).cells("table4", world) for n in (1, 2))
    assert [one.name() for one in once if not one.validated] == [one.name() for one in twice[: len(once) - 3]]
    again = [one for one in twice if one.repeat]
    assert [(one.method, one.repeat) for one in again] == [
        (one.method, 1) for one in once if not one.validated
    ]
    assert not {one.name() for one in again} & {one.name() for one in once}
    assert {mined_name(one) for one in again} <= {mined_name(one) for one in once}
    rivals = Design(load_config(), trainings=2).cells("table2", world)
    assert [one.repeat for one in rivals if one.method == "bm25"] == [0]


def test_an_ablation_has_the_settings_of_what_it_ablates():
    world = build_world("default", "tiny", 0)
    own, shared = {"docs_per_source": 4}, {"docs_per_source": 1}
    design = Design(load_config(), {"fs_lr": own, "plus_p1": own, "crops": shared})
    *steps, recipe = [one.point for one in design.cells("table3", world)]
    assert steps == [shared] * 14
    assert recipe == {}
    rivals = {one.method: one.point for one in design.cells("table2", world)}
    assert (rivals["fs_lr"], rivals["crops"]) == (own, shared)
    # FS-LR as a rival and as the baseline of the ablation are two cells now
    assert len({one.name() for one in design.cells("all", world)}) == 8 + 7 + 4 - 2 + 3 + 9 + 2


def test_more_generated_documents_leave_the_cells_of_other_sources(tmp_path):
    world, cells = build_world("default", "tiny", 0), []
    for text in ("one", "two"):
        (tmp_path / text).write_text(text)
        cells.append(Design(load_config(), {}, {"": tmp_path / text}).cells("all", world))
    changed = {a.method for a, b in zip(*cells, strict=True) if a.name() != b.name()}
    graded = {"infonce_graded", "softmax_ce", "softmax_ce_lower"}
    texts = {"crops_expanded", "crops_clicks", "crops_clicks_expanded"}
    assert changed == {"crops", "binary", "p1_at_4", "crops_anchors"} | graded | texts


def test_rows_of_other_texts_share_a_mining_without_theta_and_the_recipe_has_its_settings():
    world = build_world("default", "tiny", 0)
    design = Design(load_config())
    cells = {one.method: one for name in ("table2", "table3") for one in design.cells(name, world)}
    expanded = {one.method: one.rewordings for one in cells.values() if one.rewordings is not None}
    assert set(expanded) == {name for name in cells if name.endswith("expanded")} | {"recommended"}
    assert len({mined_name(one) for one in expanded.values()}) == 1
    engine = expanded["fs_lr_expanded"].run.engine
    assert (engine.sources, engine.reformulation.relevance, engine.feed.relevance) == (("p1",), 0.0, 0.6)
    assert mined_name(cells["fs_lr_expanded"]) == mined_name(cells["fs_lr"])
    assert "click_query" in cells["crops_clicks"].run.document.fields
    assert cells["crops_clicks"].run.engine == cells["crops"].run.engine
    recipe = cells["recommended"].run
    found = {name: operator.attrgetter(name)(recipe) for name in RECIPES["recommended"]}
    assert found == RECIPES["recommended"]
    assert len({sets_name(one) for one in cells.values()}) == 1


def test_generated_documents_by_world(tmp_path):
    packaged = tmp_path / "packaged.jsonl"
    packaged.write_text("{}")
    assert generated_files(None, packaged) == {"": packaged}
    with pytest.raises(CropsError, match="no <size>-<world>-<seed>.jsonl"):
        generated_files(tmp_path / "none", packaged)
    own = tmp_path / "own"
    own.mkdir()
    (own / "tiny-default-1.jsonl").write_text("{}")
    design = Design(load_config(), {}, generated_files(own, packaged))
    assert design.documents(build_world("default", "tiny", 1)) == own / "tiny-default-1.jsonl"
    assert design.documents(build_world("default", "tiny", 0)) == packaged


def test_stored_points_are_settings_that_methods_know():
    from crops.training.methods import METHODS

    for method, point in stored_points("static").items():
        if method != "bm25":
            METHODS[method].settings(point)
    assert stored_points("no such encoder").keys() <= {"bm25"}
