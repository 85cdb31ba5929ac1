"""What changed for the training queries, and the pages that tell it, on a world to count by eye."""

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served_world import open_world
from starlette.testclient import TestClient

from crops.engine.evidence import TrainingQuery
from crops.evaluation.trec import read_qrels
from crops.serving.app import make_app
from crops.serving.evidence import Change, Changes, Truth, compare_answers
from crops.text import query_id

JAGUAR = query_id("jaguar")


@pytest.fixture(scope="module")
def truth(tmp_path_factory, world):
    """Of those who searched "jaguar" four wanted the cat (items 2 and 3) and two the car (item 1)."""
    folder = tmp_path_factory.mktemp("truth")
    wanted = dict.fromkeys(range(1, 5), 1) | {5: 2, 6: 2} | dict.fromkeys(range(11, 15), 1)
    tables = {
        "needs": {"need_id": [1, 2], "sense": ["the cat", "the car"]},
        "items": {"item_id": [1, 2, 3], "need_id": [2, 1, 1]},
        "searches": {"search_id": list(wanted), "need_id": list(wanted.values())},
        "grades": {"need_id": [1, 2, 1, 1], "item_id": [2, 1, 3, 1], "grade": [3, 2, 2, 1]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return Truth(folder, world / "samples")


def test_an_answer_is_counted_for_the_mean_searcher(truth):
    found = truth.answers(JAGUAR, [1, 2, 3, 6])
    assert found.relevant == pytest.approx((4 * 2 + 2 * 1) / 6)
    assert found.grades == {1: 2, 2: 3, 3: 2, 6: 0}  # for the need that it fits best
    assert truth.answers(query_id("nobody asked"), [1]) is None
    assert truth.of(1) == "the car"


class Fixed:
    """Answers each job with the items of its query."""

    def __init__(self, **found):
        self.found = found

    def answer(self, jobs):
        return [SimpleNamespace(ids=self.found[job.query.replace(" ", "_")]) for job in jobs]


def test_queries_that_gained_and_lost_most_come_first(truth):
    texts = ("jaguar", "spotted cat", "unknown")
    queries = [TrainingQuery(query_id(text), text, 9, 9) for text in texts]
    before = Fixed(jaguar=[6, 1], spotted_cat=[2, 3], unknown=[4])
    after = Fixed(jaguar=[2, 3], spotted_cat=[3, 6], unknown=[4])
    found = compare_answers(before, after, SimpleNamespace(queries=queries), truth)
    assert [(one.query.text, one.new) for one in found.compared] == list(zip(texts, (2, 1, 0), strict=True))
    # "jaguar": 4 of 6 searchers find 2 more and 2 find 1 less; "spotted cat": all want the cat.
    (won,), (lost,) = found.gained, found.lost
    assert (won.gain, lost.gain) == (pytest.approx((4 * 2 - 2) / 6), -1)
    assert found.mean_gain == pytest.approx((won.gain + lost.gain) / 2)
    assert [one.query.text for one in found.renewed] == ["jaguar", "spotted cat"]
    assert compare_answers(before, after, SimpleNamespace(queries=queries), None).mean_gain is None


def test_a_difference_that_is_shown_as_0_is_none():
    query = TrainingQuery(1, "a", 9, 9)
    found = Changes([Change(query, 1, gain) for gain in (0.04, -0.04, -1e-17, 0.05, -0.05)])
    assert ([one.gain for one in found.gained], [one.gain for one in found.lost]) == ([0.05], [-0.05])


@pytest.fixture
def pages(own_service, truth):
    """A client whose server knows the truth."""
    own_service.truth = truth
    own_service.changes = own_service.compare({n: slot.searcher for n, slot in own_service.slots.items()})
    with TestClient(make_app(own_service), raise_server_exceptions=False) as client:
        yield lambda path, **asked: " ".join(client.get(path, params=asked).text.split())


def test_grades_and_the_difference_stand_in_the_headline(pages):
    page = pages("/", q="jaguar", k=3)
    assert all(told in page for told in ("truly answer the mean searcher", "grade 3 of 3", "the cat"))
    assert "most searched queries" in pages("/")


def test_more_like_this_lists_other_items_and_says_how_to_ask_it(client):
    page = client.get("/", params={"like": 3}).text
    assert 'data-item="3"' not in page
    assert page.count('class="hit"') == 7
    assert "/similar" in page
    assert "{&#34;item_id&#34;: &#34;3&#34;, &#34;k&#34;: 10}" in page
    assert client.get("/", params={"like": 999}).status_code == 404


def test_what_is_gone_says_where_it_is_now_and_what_training_said(client):
    page = " ".join(client.get("/", params={"q": "jaguar", "k": 3}).text.split())
    assert 'in training it had <a href="/group?q=jaguar#label-4">label 4</a> for this query' in page  # item 2
    assert '<span class="tag lost">gone</span> <span class="soft">to ' in page


def test_grades_are_exported_as_qrels(client, tmp_path):
    reply = client.get("/judgements", params={"q": "Jaguar", "3": "2", "1": "", "4": "0"})
    assert reply.headers["content-disposition"] == 'attachment; filename="judgements.qrels"'
    (tmp_path / "judgements.qrels").write_text(reply.text)
    assert read_qrels(tmp_path / "judgements.qrels") == {str(JAGUAR): {"3": 2, "4": 0}}
    for wrong, status in (({}, 422), ({"3": "4"}, 422), ({"x": "1"}, 422), ({"999": "1"}, 404)):
        assert client.get("/judgements", params={"q": "jaguar", **wrong}).status_code == status


def test_a_browser_that_asks_for_a_wrong_page_gets_a_page(client):
    page = client.get("/nonsense", headers={"accept": "text/html,*/*"})
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "there is no page /nonsense" in page.text
    assert client.get("/nonsense").json() == {"detail": "Not Found"}


def test_where_few_people_searched_the_first_page_says_why_nothing_is_told(world, fake_models):
    """Seven people searched "jaguar"; five of them reworded it, four clicked."""
    with TestClient(make_app(open_world(world, shown_users=8))) as client:
        page = " ".join(client.get("/").text.split())
    assert "Why no evidence is shown" in page
    assert "0 of them were searched by at least 8 people" in page
    assert "--shown-users 1" in page
    with TestClient(make_app(open_world(world, shown_users=5))) as client:
        page = " ".join(client.get("/").text.split())
    assert "Why little evidence is shown" in page
    assert "<bdi>jaguar</bdi>" in page
    # "jaguar" with items 3 and 5, the secret query with 5
    assert "consumed after rewording: 3 positives of 5 people" in page
