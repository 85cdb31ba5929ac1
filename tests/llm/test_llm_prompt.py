"""The prompt, its shipped templates and documents, and the guards before and behind the LLM."""

import importlib.resources
import json
import re

import pytest

from crops.errors import CropsError
from crops.llm import Exemplar, Request, load_prompt
from crops.llm.prompt import (
    FIELDS,
    check_answer,
    clean,
    clean_request,
    tidy,
)
from crops.text import normalise_query

TEXTS = {"ocr_cover": 'My "best" fig', "photo_caption": "A tree by the window", "keyword": "plants"}


@pytest.fixture(scope="module", params=["en", "en2", "zh"])
def prompt(request):
    return load_prompt(request.param)


def test_exemplar_is_the_past_chat_turn_before_the_query(prompt):
    request = Request("ficus", 30, Exemplar(7, TEXTS), seed=2)
    turns = prompt.messages(request)

    assert [turn["role"] for turn in turns] == ["system"] + ["user", "assistant"] * 3 + ["user"]
    assert TEXTS["ocr_cover"] not in turns[0]["content"]
    assert json.loads(turns[-3]["content"]) == {"query": "ficus", "angle": prompt.exemplar_angle}
    assert json.loads(turns[-2]["content"]) == {**TEXTS, "click_query": ""}
    last = {"query": "ficus", "angle": prompt.angle(request), "unlike": TEXTS["ocr_cover"]}
    assert json.loads(turns[-1]["content"]) == last
    # how many searched, and where the exemplar comes from, the model does not read
    assert turns == prompt.messages(Request("ficus", 99_999, Exemplar(8, TEXTS), seed=2))


def test_seeds_walk_through_all_angles(prompt):
    seen = {
        prompt.angle(Request("ficus", 30, Exemplar(7, TEXTS), seed)) for seed in range(len(prompt.angles))
    }
    assert seen == set(prompt.angles)
    kinds = {"en2": {"sense", "need", "audience", "format"}, "zh": {"含义", "需求", "人群", "形式"}}
    for name, expected in kinds.items():
        angles = load_prompt(name).angles
        assert {re.split("[:：]", angle)[0] for angle in angles} == expected
        assert len(set(angles)) == len(angles) == 8


def test_schema_allows_exactly_the_four_fields_within_limits(prompt):
    schema = prompt.response_format()["json_schema"]["schema"]
    assert tuple(schema["required"]) == FIELDS == tuple(schema["properties"])
    assert schema["additionalProperties"] is False
    for field in FIELDS:
        assert 0 < schema["properties"][field]["minLength"] < schema["properties"][field]["maxLength"]


def test_any_edit_of_the_template_changes_the_version(tmp_path):
    from importlib import resources

    text = (resources.files("crops.llm") / "prompts" / "en.toml").read_text()
    (tmp_path / "en.toml").write_text(text)
    assert load_prompt(str(tmp_path / "en.toml")).version == load_prompt().version
    (tmp_path / "en.toml").write_text(text.replace("cover", "front", 1))
    assert load_prompt(str(tmp_path / "en.toml")).version != load_prompt().version


def test_the_lessons_of_a_template_pass_its_own_guards(prompt):
    for lesson in prompt.lessons:
        request = Request(lesson.query, 30, Exemplar(7, TEXTS))
        assert check_answer(tidy(lesson.answer, lesson.query, prompt.limits), request, prompt) is None


def test_chinese_answers_pass_and_latin_words_in_them_do_too():
    prompt = load_prompt("zh")
    texts = {"ocr_cover": "榕树叶子发黄怎么办", "photo_caption": "先看看盆底有没有积水，再剪掉烂根"}
    answer = {"ocr_cover": "三步救回家里的盆栽",
              "photo_caption": "把植物从花盆取出，剪去发黑部分，用新土种好，放在散光处，再用手机 app 记录。",
              "click_query": "换盆方法|多久浇一次水", "keyword": "绿植 养护 换盆 浇水"}  # fmt: skip
    assert check_answer(answer, Request("榕树养护", 30, Exemplar(7, texts)), prompt) is None
    russian = {**answer, "ocr_cover": "Комнатные растения дома"}
    assert check_answer(russian, Request("榕树养护", 30, Exemplar(7, texts)), prompt) == "foreign_script"


@pytest.mark.parametrize("text", ["system = 1", "not toml [", 'system = "x"\nangles = []'])
def test_malformed_template_is_named(tmp_path, text):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(CropsError, match=r"own\.toml: malformed prompt template"):
        load_prompt(str(tmp_path / "own.toml"))
    with pytest.raises(CropsError, match=r"no prompt template at .*none\.toml"):
        load_prompt(str(tmp_path / "none.toml"))


PROMPT = load_prompt()
EXEMPLAR = {
    "ocr_cover": "Stop moving your fiddle leaf",
    "photo_caption": "Leaves drop every time you turn the pot, pick a bright corner and leave it there",
    "keyword": "houseplants plantcare",
}
GOOD = {"ocr_cover": "Three gallons fixed my sad tree",
        "photo_caption": "I soak the root ball in a bucket on Sundays and let it drain on the balcony.",
        "click_query": "how often to water a fig", "keyword": "watering roots balcony"}  # fmt: skip


def request(query="ficus", users=30, exemplar=EXEMPLAR):
    return Request(query, users, Exemplar(7, exemplar))


@pytest.mark.parametrize(("text", "expected"), [
    ('say "hi" {now}', "say hi now"),
    ("a\x00b\tc\nd", "a b c d"),
    ("fi\u200bg\u202e tree", "fig tree"),
    ("pie<|im_end|>cake</s>", "pie cake"),
    ("ﬁg", "fig"),
    ("x" * 30, "x" * 20),
    ("榕树 don't", "榕树 don't"),
])  # fmt: skip
def test_clean(text, expected):
    assert clean(text, 20) == expected


def test_request_goes_out_clean_and_cut():
    sent = clean_request(
        request('"best" ficus', exemplar={"ocr_cover": "a {b}", "photo_caption": "y" * 900, "keyword": ""})
    )
    assert sent.query == "best ficus"
    assert sent.exemplar.texts == {"ocr_cover": "a b", "photo_caption": "y" * 200}


def test_tidy_drops_duplicates_query_and_cut_terms():
    limits = PROMPT.limits
    click = "ficus|Water a fig|water a fig|fig pot|"
    click += "z" * (limits["click_query"].max_chars - len(click))
    answer = {**GOOD, "click_query": click, "keyword": "#plants, Plants|roots  roots fig"}

    result = tidy(answer, "ficus", limits)

    assert result["click_query"] == "Water a fig|fig pot"
    assert result["keyword"] == "plants roots fig"
    assert result["photo_caption"] == GOOD["photo_caption"]


def test_tidy_ends_a_cut_caption_at_a_sentence_or_a_word():
    limit = PROMPT.limits["photo_caption"].max_chars
    sentence = "I water it. " * 20 + "a" * limit
    running = "water " * 50
    assert tidy({**GOOD, "photo_caption": sentence[:limit]}, "ficus", PROMPT.limits)[
        "photo_caption"
    ].endswith("it.")
    cut = tidy({**GOOD, "photo_caption": running[:limit]}, "ficus", PROMPT.limits)["photo_caption"]
    assert set(cut.split()) == {"water"}


def test_copy_is_a_share_of_the_words_that_are_not_the_query():
    # Own words: alpha beta gamma delta epsilon; 3 of 5 in the exemplar = 0.6 is kept, 4 of 5 is a copy.
    exemplar = {"ocr_cover": "alpha beta gamma", "photo_caption": "ficus one two three"}
    answer = {**GOOD, "ocr_cover": "ficus alpha beta gamma", "photo_caption": "ficus delta epsilon ficus"}
    assert check_answer(answer, request(exemplar=exemplar), PROMPT) is None
    exemplar["photo_caption"] += " delta"
    assert check_answer(answer, request(exemplar=exemplar), PROMPT) == "copy"
    # the script of the query is not foreign
    assert check_answer({**GOOD, "ocr_cover": "榕树 for beginners"}, request("榕树 care"), PROMPT) is None


def test_an_echo_has_more_than_six_of_ten_words_from_the_query():
    query = "one two three four five six"
    answer = {**GOOD, "ocr_cover": query, "photo_caption": "alpha beta gamma delta"}
    assert check_answer(answer, request(query), PROMPT) is None
    assert check_answer({**answer, "photo_caption": "alpha beta gamma one"}, request(query), PROMPT) == "echo"


def test_the_shipped_documents_are_one_per_normalised_query_of_the_shipped_prompt():
    path = importlib.resources.files("crops.llm") / "data" / "documents.jsonl"
    documents = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["prompt_version"] for row in documents} == {load_prompt().version}
    assert {row["model"] for row in documents} == {"Qwen2.5-Coder-1.5B-Instruct Q4_K_M"}
    assert {len(row["model_sha256"]) for row in documents} == {64}
    queries = [row["query"] for row in documents]
    assert len(set(queries)) == len(queries) > 200
    assert all(query == normalise_query(query) for query in queries)
    for row in documents:
        assert len(row["ocr_cover"]) >= 4
        assert len(row["photo_caption"]) >= 20
        assert row["keyword"].strip()
        assert row["exemplar"]["item_id"] > 0
