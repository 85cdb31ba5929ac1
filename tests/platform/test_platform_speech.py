"""From needs to typed queries."""

import dataclasses

import numpy as np
import pytest
from platform_hand import ATTENTION, ELECTRIC, HUM, hand_intents, within

from crops.config import PlatformConfig
from crops.platform.day import behaviour
from crops.platform.people import (
    FIRST_LEVEL,
    LOSES_WORD,
    MODIFIED,
    MODIFIER_FIRST,
    MODIFIERS,
    TYPO,
    Speech,
    _lose_word,
    _slip,
)
from crops.platform.world import HEAD_LEVEL, NEED_LEVEL

N = 8_000


@pytest.fixture(scope="module")
def speech():
    return Speech(hand_intents())


@pytest.fixture(scope="module")
def phrases():
    return hand_intents().phrases


def test_searchers_say_phrases_of_their_need_at_the_stated_levels(speech, phrases):
    needs = np.random.default_rng(0).integers(0, 4, N)
    rows = speech.first(needs, np.random.default_rng(1))
    intents = hand_intents()
    assert (phrases.head[rows] == intents.sense_head[intents.need_sense[needs]]).all()
    assert np.isin(phrases.sense[rows] - intents.need_sense[needs], (0,))[phrases.sense[rows] >= 0].all()
    assert (phrases.need[rows] == needs)[phrases.need[rows] >= 0].all()
    for level, share in enumerate(FIRST_LEVEL):
        assert within(int((phrases.level[rows] == level).sum()), N, share)
    # both searches of "hum" are used
    said = {phrases.text[row] for row in rows[needs == HUM]}
    assert said == {"transformer", "power transformer", "why does it hum", "loud hum"}


def test_reformulations_specify_rephrase_or_generalise(speech, phrases):
    model = behaviour(PlatformConfig())
    sense_phrase = phrases.text.index("power transformer")
    again = speech.again(np.full(N, HUM), np.full(N, sense_phrase), model, np.random.default_rng(0))
    levels = np.bincount(phrases.level[again], minlength=3)
    assert within(int(levels[2]), N, model.specify)
    assert within(int(levels[1]), N, model.rephrase)
    assert within(int(levels[0]), N, 1 - model.specify - model.rephrase)


def test_nobody_gets_vaguer_than_the_head_or_finer_than_the_need(speech, phrases):
    down = dataclasses.replace(behaviour(PlatformConfig()), specify=0.0, rephrase=0.0)
    up = dataclasses.replace(down, specify=1.0)
    rng = np.random.default_rng(0)
    head, need = phrases.text.index("transformer"), phrases.text.index("loud hum")
    assert set(phrases.level[speech.again(np.full(9, HUM), np.full(9, head), down, rng)]) == {HEAD_LEVEL}
    assert set(phrases.level[speech.again(np.full(9, HUM), np.full(9, need), up, rng)]) == {NEED_LEVEL}


def test_typed_text_has_modifiers_and_slips_at_their_rates(speech, phrases):
    row = phrases.text.index("self attention")
    typed = speech.type(np.full(N, row), np.random.default_rng(2))
    after = sum(text.removeprefix("self attention ") in MODIFIERS for text in typed)
    before = sum(text.removesuffix(" self attention") in MODIFIERS for text in typed)
    plain = typed.count("self attention")
    clean = 1 - TYPO
    assert within(after, N, MODIFIED[NEED_LEVEL] * (1 - MODIFIER_FIRST) * clean)
    assert within(before, N, MODIFIED[NEED_LEVEL] * MODIFIER_FIRST * clean)
    assert within(plain, N, (1 - MODIFIED[NEED_LEVEL]) * clean)
    first = sum(text == f"self attention {MODIFIERS[0]}" for text in typed)
    second = sum(text == f"self attention {MODIFIERS[1]}" for text in typed)
    assert 1.5 < first / second < 2.7  # Zipf: 2


def test_heads_get_fewer_modifiers(speech, phrases):
    typed = speech.type(np.full(N, phrases.text.index("ficus")), np.random.default_rng(2))
    assert within(typed.count("ficus"), N, (1 - MODIFIED[HEAD_LEVEL]) * (1 - TYPO), sigmas=6)


def test_long_phrases_lose_words(speech, phrases):
    typed = speech.type(np.full(N, phrases.text.index("why does it hum")), np.random.default_rng(3))
    shorter = {"does it hum", "why it hum", "why does hum", "why does it"}
    lost = sum(text in shorter for text in typed)
    assert within(lost, N, LOSES_WORD * (1 - MODIFIED[NEED_LEVEL]) * (1 - TYPO), sigmas=6)
    assert shorter <= set(typed)


def test_lost_words_and_slips_by_hand():
    assert _lose_word("a b c d", 0.0) == "b c d"
    assert _lose_word("a b c d", 0.99) == "a b c"
    assert _lose_word("a b c", 0.5) == "a b c"
    assert _slip("abcd", 0.0, swap=True) == "bacd"
    assert _slip("abcd", 0.99, swap=True) == "abdc"
    assert _slip("abcd", 0.0, swap=False) == "bcd"
    assert _slip("abcd", 0.99, swap=False) == "abd"
    assert _slip("a", 0.5, swap=True) == "a"


def test_meanings_are_what_the_words_say_whoever_types_them(speech, phrases):
    head, sense, need = (
        phrases.text.index(text) for text in ("transformer", "power transformer", "loud hum")
    )
    texts = ["transformer tips", "powr transformer", "loud hum", "transformer"]
    rows = np.array([head, sense, need, need])
    # the last one meant the need, but typed the head alone
    assert speech.meanings(texts, rows).tolist() == [
        [0, -1, -1], [0, ELECTRIC, -1], [0, ELECTRIC, HUM], [0, -1, -1],
    ]  # fmt: skip


def test_a_text_at_several_levels_means_the_vaguest():
    intents = hand_intents()
    rows = intents.phrases
    text = [
        "transformer" if row in (rows.text.index("loud hum"), 1) else own for row, own in enumerate(rows.text)
    ]
    assert text.count("transformer") == 3
    speech = Speech(dataclasses.replace(intents, phrases=dataclasses.replace(rows, text=tuple(text))))
    assert speech.meanings(["transformer"], np.array([rows.text.index("loud hum")])).tolist() == [[0, -1, -1]]


def test_typing_is_the_same_for_the_same_seed(speech):
    rows = speech.first(np.full(50, ATTENTION), np.random.default_rng(5))
    assert speech.type(rows, np.random.default_rng(6)) == speech.type(rows, np.random.default_rng(6))
