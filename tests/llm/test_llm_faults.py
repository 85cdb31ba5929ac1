"""Endpoints that fail, refuse, think aloud or wrap their answers: a run says why, and stops in time."""

import json

import pytest
from typer.testing import CliRunner

from crops.cli.app import app
from crops.cli.llm import generate as generate_command
from crops.cli.llm import judge_llm, judge_sheet
from crops.errors import CropsError
from crops.llm import Budget, Endpoint, Exemplar, Request, generate, load_prompt
from crops.llm.batch import FEWEST, MAX_OUTAGE, quarantine_path, read_rows

PROMPT = load_prompt()
TEXTS = {
    "ocr_cover": "Stop moving your fiddle leaf",
    "photo_caption": "Leaves drop every time you turn the pot",
}
GOOD = {
    "ocr_cover": "Grow it on a bright sill",
    "photo_caption": "I turn the pot once a month and wipe dust from each leaf with a damp cloth.",
    "click_query": "fig tree indoors|leaf care routine",
    "keyword": "houseplants watering sunlight",
}
MANY = [f"query {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]


def ask(fake, cache, queries=("ficus",), *, budget=None, retry_refused=False, **endpoint):
    settings = {"retries": 0, "timeout_s": 10.0, "concurrency": 1} | endpoint
    return generate(
        [Request(query, 30, Exemplar(7, TEXTS)) for query in queries],
        PROMPT,
        Endpoint(fake.base_url, "m", "abc", **settings),
        cache,
        budget=budget,
        retry_refused=retry_refused,
    )


@pytest.mark.parametrize(
    ("status", "cause", "calls"),
    [
        (401, r"HTTP 401, the key is missing or wrong, set \$CROPS_LLM_API_KEY \(no\)", 1),
        (402, "HTTP 402, the account is out of credit", 1),
        (403, "HTTP 403, the key .* may not do this", 1),
        (404, r"HTTP 404, no model 'm' there, or the base URL lacks its path \(often /v1\)", 1),
        (400, "8 calls in a row got no answer: HTTP 400, the server cannot use the request", 2 * MAX_OUTAGE),
        (429, "8 calls in a row got no answer: HTTP 429, too many requests or no quota left", MAX_OUTAGE),
        (500, "8 calls in a row got no answer: HTTP 500, the server failed", MAX_OUTAGE),
        (503, "HTTP 503, the server failed", MAX_OUTAGE),
        (302, "HTTP 302, it redirects to http://elsewhere.example/v1: name that base URL", 1),
    ],
)
def test_status_and_cause_are_said_and_the_run_stops(fake, tmp_path, status, cause, calls):
    fake.otherwise = [status]
    with pytest.raises(CropsError, match=cause) as stopped:
        ask(fake, tmp_path / "out.jsonl", MANY)
    assert fake.base_url in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert "0 written" in str(stopped.value)
    assert sum(fake.calls.values()) == calls  # a 400 is tried without response_format, too
    assert ask(fake_works(fake), tmp_path / "out.jsonl", MANY)["written"] == len(MANY)


def fake_works(fake):
    fake.otherwise = ["ok"]
    return fake


@pytest.mark.parametrize("command", ["generate", "judge"])
@pytest.mark.parametrize("status", [401, 500])
def test_both_commands_end_with_an_error_code(mined, fake, tmp_path, command, status, monkeypatch, capsys):
    fake.otherwise = [status]
    settings = tmp_path / "run.toml"
    settings.write_text("[llm]\nretries = 0\n")
    judge_sheet(mined, tmp_path / "sheet.csv", each=10)
    start = {
        "generate": ["generate", str(mined), str(tmp_path / "out.jsonl")],
        "judge": ["judge", "llm", str(tmp_path / "sheet.csv"), str(tmp_path / "llm.csv")],
    }[command]
    arguments = [*start, "--base-url", fake.base_url, "--model", "m", "--config", str(settings)]
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code != 0
    assert f"HTTP {status}, " in str(ended.exception)
    assert "next: crops mine" not in capsys.readouterr().err
    assert not (tmp_path / "llm.csv").exists()


def test_a_key_that_is_taken_back_does_not_lose_what_was_written(fake, tmp_path):
    fake.otherwise = [401]
    fake.scripts = {query: ["ok"] for query in MANY[:3]}
    with pytest.raises(CropsError, match=r"HTTP 401.*; 3 written, 15 not sent"):
        ask(fake, tmp_path / "out.jsonl", MANY)
    assert len(list(read_rows(tmp_path / "out.jsonl"))) == 3


def test_one_refused_request_among_many_stops_nothing(fake, tmp_path, capsys):
    fake.scripts["ficus"] = [403]
    counts = ask(fake, tmp_path / "out.jsonl", [*MANY, "ficus"])
    assert (counts["written"], counts["refused:http_403"]) == (len(MANY), 1)
    assert "1 calls got no answer (HTTP 403" in " ".join(capsys.readouterr().err.split())


def test_the_key_is_in_no_message_and_no_file(fake, tmp_path):
    fake.otherwise = [401]
    fake.message = "wrong key s3cret-key"
    with pytest.raises(CropsError, match=r"wrong key \*\*\*"):
        ask(fake, tmp_path / "out.jsonl", api_key="s3cret-key")
    assert "s3cret" not in quarantine_path(tmp_path / "out.jsonl").read_text()


@pytest.mark.parametrize("key", ["", "schlüssel", "two\nlines", " key"])
def test_a_key_that_no_header_can_carry_is_named(fake, tmp_path, key):
    with pytest.raises(CropsError, match="CROPS_LLM_API_KEY is no key"):
        ask(fake, tmp_path / "out.jsonl", api_key=key)


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "127.0.0.1:8000", "http://[::1", "http:///v1", "ftp://a/v1"]
)
def test_an_address_that_is_none_is_named(tmp_path, url):
    with pytest.raises(CropsError, match=r"llm\.base_url"):
        generate(
            [Request("ficus", 30, Exemplar(7, TEXTS))], PROMPT, Endpoint(url, "m"), tmp_path / "out.jsonl"
        )


def test_an_error_body_with_status_200_is_told(fake, tmp_path, text):
    fake.otherwise = ["error_200"]
    with pytest.raises(CropsError, match="not_a_completion: the provider is overloaded"):
        ask(fake, tmp_path / "out.jsonl")


def test_a_paid_run_stops_when_nearly_all_answers_are_unusable(fake, tmp_path):
    fake.otherwise = ["not_json"]
    with pytest.raises(CropsError) as stopped:
        ask(fake, tmp_path / "out.jsonl", MANY)
    assert sum(fake.calls.values()) == FEWEST
    assert f"10 of the last 10 answers of 'm' are unusable (10 not_json): see {tmp_path}" in str(
        stopped.value
    )
    assert (
        f"llm.max_unusable = 0.8 where that is as it should be; 0 written, {len(MANY) - 10} not sent"
        in str(stopped.value)
    )


def test_the_share_that_stops_a_run_is_a_setting(fake, tmp_path):
    fake.scripts = {query: ["not_json"] for query in MANY[::2]}  # every second one
    assert ask(fake, tmp_path / "a.jsonl", MANY)["written"] == len(MANY) // 2
    with pytest.raises(CropsError, match="10 of the last 20|5 of the last 10"):
        ask(fake, tmp_path / "b.jsonl", MANY, budget=Budget(max_unusable=0.45))
    fake.scripts, fake.otherwise = {"query z": ["ok"]}, ["not_json"]
    assert ask(fake, tmp_path / "c.jsonl", MANY, budget=Budget(max_unusable=1.0))["written"] == 1


def test_the_command_takes_the_share_from_the_settings(mined, fake, tmp_path):
    settings = tmp_path / "run.toml"
    settings.write_text("[llm]\nmax_unusable = 1.5\n")
    with pytest.raises(CropsError, match=r"llm\.max_unusable"):
        generate_command(mined, tmp_path / "out.jsonl", base_url=fake.base_url, model="m", config=settings)


def test_a_few_answers_of_which_none_is_usable_are_an_error(mined, fake, tmp_path):
    fake.otherwise = ["not_json"]
    with pytest.raises(CropsError, match=r"none of 3 answers of 'm' is usable \(3 not_json\)"):
        generate_command(mined, tmp_path / "out.jsonl", base_url=fake.base_url, model="m")


WRAPPED = {
    "fenced": {"content": f"```json\n{json.dumps(GOOD)}\n```"},
    "fenced without a name": {"content": f"```\n{json.dumps(GOOD)}\n```"},
    "fenced in talk": {"content": f"Sure, here it is:\n\n```json\n{json.dumps(GOOD)}\n```\n\nAnything else?"},
    "after thinking": {"content": f"<think>A draft: {{}} ```json\n{{}}\n```</think>\n\n{json.dumps(GOOD)}"},
    "after thinking that began in the prompt": {
        "content": f"hm.\n</think>\n```json\n{json.dumps(GOOD)}\n```"
    },
    "filed as reasoning": {"content": None, "reasoning_content": json.dumps(GOOD)},
    "filed as reasoning, other name": {"content": "", "reasoning": f"<think>hm</think>{json.dumps(GOOD)}"},
    "reasoning beside it": {"content": json.dumps(GOOD), "reasoning_content": '{"ocr_cover": "draft"}'},
    "in parts": {"content": [{"type": "thinking", "text": "hm"}, {"type": "text", "text": json.dumps(GOOD)}]},
}


def test_answers_are_unwrapped(fake, tmp_path):
    fake.scripts = {query: [{"message": message}] for query, message in WRAPPED.items()}
    assert ask(fake, tmp_path / "out.jsonl", list(WRAPPED))["written"] == len(WRAPPED)
    for row in read_rows(tmp_path / "out.jsonl"):
        assert {name: row[name] for name in GOOD} == GOOD, row["query"]


THOUGHTS = [
    (f"<think>```json\n{json.dumps(GOOD)}\n```", "length", "truncated"),
    ("<think>What a query.", "stop", "not_json"),
    ("", "length", "truncated"),
    (f"```json\n{json.dumps(GOOD)[:60]}", "length", "truncated"),
    ("``` ``` ```", "stop", "not_json"),
]


def test_a_thought_is_no_answer(fake, tmp_path):
    for query, (content, finish, _) in zip(MANY, THOUGHTS, strict=False):
        fake.scripts[query] = [{"message": {"content": content}, "finish": finish}]
    counts = ask(fake, tmp_path / "out.jsonl", [*MANY[: len(THOUGHTS)], "jaguar"])
    reasons = [row["reason"] for row in read_rows(quarantine_path(tmp_path / "out.jsonl"))]
    assert (counts["written"], reasons) == (1, [reason for _, _, reason in THOUGHTS])


def test_a_server_without_response_format_is_asked_without_it(fake, tmp_path, capsys):
    fake.knows_formats = False
    counts = ask(fake, tmp_path / "out.jsonl", MANY)
    assert counts["written"] == len(MANY)
    asked = ["response_format" in body for body in fake.bodies]
    assert asked == [True, False] + [False] * (len(MANY) - 1)  # once, and remembered
    assert capsys.readouterr().err.count("refuses response_format") == 1


def test_a_server_that_knows_the_format_is_never_asked_without_it(fake, tmp_path):
    fake.scripts["ficus"] = [400]
    counts = ask(fake, tmp_path / "out.jsonl", ["jaguar", "ficus", "owl"])
    assert (counts["written"], counts["refused:http_400"]) == (2, 1)
    assert all("response_format" in body for body in fake.bodies)
    assert fake.calls["ficus"] == 1


def test_refused_answers_are_asked_for_again_when_told(mined, fake, text, tmp_path):
    out = tmp_path / "out.jsonl"
    fake.scripts["ficus"] = ["not_json", "ok"]
    first = generate_command(mined, out, base_url=fake.base_url, model="m")
    again = generate_command(mined, out, base_url=fake.base_url, model="m")
    retried = generate_command(mined, out, base_url=fake.base_url, model="m", retry_refused=True)
    assert (first["written"], first["refused:not_json"]) == (2, 1)
    assert (again["written"], again["quarantined_before"]) == (0, 1)
    assert (retried["written"], retried["quarantined_before"], retried["cached"]) == (1, 0, 2)
    assert fake.calls["ficus"] == 2
    assert generate_command(mined, out, base_url=fake.base_url, model="m")["cached"] == 3


def test_a_judge_asks_again_only_when_told(mined, fake, text, tmp_path):
    sheet, out = tmp_path / "sheet.csv", tmp_path / "llm.csv"
    judge_sheet(mined, sheet, each=10)
    fake.otherwise = [text('{"grade": "relevant"}')]
    fake.scripts["bat"] = [text('{"grade": "great"}'), text('{"grade": "relevant"}')]
    first, again = (judge_llm(sheet, out, base_url=fake.base_url, model="m") for _ in range(2))
    assert (first["refused:wrong_fields"], again["quarantined_before"]) == (1, 1)
    assert fake.calls["bat"] == 1
    before = quarantine_path(out.with_suffix(".jsonl")).read_text()
    retried = judge_llm(sheet, out, base_url=fake.base_url, model="m", retry_refused=True)
    assert (retried["written"], fake.calls["bat"]) == (1, 2)
    assert quarantine_path(out.with_suffix(".jsonl")).read_text() == before  # nothing is filed twice


def test_a_thinking_model_gets_room(mined, fake, tmp_path):
    settings = tmp_path / "run.toml"
    settings.write_text("[llm]\nmax_tokens = 4000\n")
    generate_command(mined, tmp_path / "out.jsonl", base_url=fake.base_url, model="m", config=settings)
    assert {body["max_tokens"] for body in fake.bodies} == {4000}
