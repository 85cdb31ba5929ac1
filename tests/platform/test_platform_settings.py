"""Settings that cannot be are refused by name; the platform says which it is."""

import typing

import pytest

from crops.config import PlatformConfig, load_config
from crops.errors import CropsError
from crops.platform import SIZES, build_platform
from crops.platform.day import behaviour, sessions_per_day
from crops.platform.people import CLICK_MODELS, MODIFIED
from crops.platform.search import BUBBLES
from crops.platform.topics import EDITIONS, extent


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("days", 3, "greater than or equal to 4"),
        ("days", 31, "less than or equal to 30"),
        ("ranker_noise", -0.1, "greater than or equal to 0"),
        ("reformulate", -0.1, "greater than or equal to 0"),
        ("reformulate", 0.7, "less than or equal to 0.6"),
        ("feed_alignment", 1.1, "less than or equal to 1"),
        ("good_abandonment", -1, "greater than or equal to 0"),
        ("sessions", 0, "greater than or equal to 50"),
        ("users", 1, "greater than or equal to 2"),
        ("size", "huge", "'tiny', 'compact', 'demo', 'small', 'base' or 'large'"),
        ("bubble", "none", "'weak', 'default' or 'strong'"),
        ("click_model", "cascade", "'dbn', 'dcm' or 'pbm'"),
    ],
)
def test_impossible_settings_are_refused_by_name_with_the_range(name, value, said):
    with pytest.raises(CropsError) as refused:
        load_config(**{f"platform__{name}": value})
    assert f"'platform.{name}' = {value!r}" in str(refused.value)
    assert said in str(refused.value)


def test_the_longest_run_still_has_items_on_its_first_day():
    platform = build_platform(PlatformConfig(size="tiny", days=30), 0)
    assert (platform.world.corpus.uploaded_day <= 0).sum() > 500


def test_names_in_the_settings_are_those_of_the_platform():
    fields = PlatformConfig.model_fields
    assert set(typing.get_args(fields["size"].annotation)) == set(SIZES)
    assert set(typing.get_args(fields["bubble"].annotation)) == set(BUBBLES)
    assert set(typing.get_args(fields["edition"].annotation)) == set(EDITIONS)
    assert set(typing.get_args(fields["click_model"].annotation)) == set(CLICK_MODELS)


def test_an_edition_sets_how_large_a_world_is_and_a_setting_of_the_run_goes_before():
    first, second = (PlatformConfig(size="tiny", edition=name) for name in ("v1", "v2"))
    assert [extent(one).items for one in (first, second)] == [2_000, 5_000]
    assert [sessions_per_day(one) for one in (first, second)] == [300, 120]
    assert sessions_per_day(PlatformConfig(size="tiny", edition="v2", sessions=70)) == 70
    assert "edition" not in first.model_dump()  # folders of v1 keep their names
    platform = build_platform(second, 0)
    uploaded = platform.world.corpus.uploaded_day
    assert uploaded.min() >= 4 - 6
    assert 0.30 < (uploaded > 2).mean() < 0.37  # a third of the catalogue is newer than the training day
    assert platform.behaviour.first_level == (0.25, 0.55, 0.20)


def test_settings_reach_the_platform():
    rates = {"reformulate": 0.4, "feed_alignment": 0.9, "good_abandonment": 0.3, "informative": False}
    config = PlatformConfig(
        size="tiny", users=20, bubble="weak", ranker_noise=1.5, click_model="pbm", **rates
    )
    platform = build_platform(config, 0)
    assert {name: getattr(platform.behaviour, name) for name in rates} == rates
    assert platform.behaviour.click_model == "pbm"
    assert (platform.ranker_noise, platform.bubble) == (1.5, BUBBLES["weak"])
    assert len(platform.users.activity) == 20


def test_shares_leave_room_for_those_who_leave():
    most = PlatformConfig.model_fields["reformulate"].metadata
    rates = behaviour(PlatformConfig())
    assert rates.page + max(getattr(limit, "le", 0) for limit in most) + rates.switch <= 1
    assert [sum(one.first_level) for one in EDITIONS.values()] == pytest.approx([1] * len(EDITIONS))
    assert max(MODIFIED) <= 1
    assert rates.specify + rates.rephrase <= 1
    assert rates.trend + rates.from_feed <= 1
