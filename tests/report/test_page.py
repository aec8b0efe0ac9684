"""The page of a run, without a browser: what is in it, what is not, and that nothing breaks out."""

import base64
import dataclasses
import functools
import gzip
import hashlib
import html
import json
import re
from html.parser import HTMLParser

import pytest
from report_runs import BARE_RUN, HOSTILE, QUESTIONS, RESULTS, RUN, figure, question

from radit_jax.report.page import render_page
from radit_jax.report.run_records import SettingDifference


class Tags(HTMLParser):
    """Each start tag with its attributes, the text of scripts, and all other text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts, self.words, self._inside = [], [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data):
        (self.scripts if self._inside == "script" else self.words).append(data)

    def handle_endtag(self, tag):
        self._inside = ""


def words_of(page):
    return " ".join(" ".join(Tags(page).words).split())


def block(page, name):
    text = re.search(f'id="{name}">([^<]*)<', page)[1]
    return json.loads(gzip.decompress(base64.b64decode(text)))


@functools.cache
def whole_page():
    return render_page(RUN)


def test_every_section_of_a_whole_run_is_there():
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", whole_page())
    assert [html.unescape(title) for title in titles] == [
        "Answers",
        "Retrieval",
        "Questions",
        "The labels’ signal",
        "Calibration",
        "Answer length and cuts",
        "Training",
        "Settings unlike the paper’s",
        "Provenance",
        "Licences",
    ]


def test_the_verdict_is_the_title():
    title = re.search("<h1>(.*?)</h1>", whole_page())[1]
    assert (
        title.startswith("RA-DIT answers 60.0\xa0% of 5 questions") and "2 got better, 1 got worse" in title
    )


def test_what_the_run_was_made_of_is_said():
    words = words_of(whole_page())
    for fact in ("c" * 40, "jax 1.2", "1 × cpu", "2.0 min", "r_ft.tau 0.02 0.01", "mit (by its card)"):
        assert fact in words, fact


def test_a_run_that_is_not_evaluated_has_the_sections_that_it_can_have():
    page = render_page(BARE_RUN)
    assert re.findall('<section id="(.*?)"', page) == ["provenance"]
    assert "Nothing was evaluated yet" in page and "<h1>begun: not evaluated yet" in page


def test_a_page_names_no_file_and_no_host_but_in_links_that_a_reader_may_follow():
    for tag, attributes in Tags(whole_page()).tags:
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            address = attributes.get(name) or ""
            is_inside = address.startswith("#") or address == "data:,"
            is_link = tag == "a" and address == "https://arxiv.org/abs/2310.01352"
            assert not address or is_inside or is_link or "xlink" in name, (tag, address)
    style = re.search("<style>(.*?)</style>", whole_page(), re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style


def test_the_policy_lets_our_script_run_and_nothing_load():
    tags = Tags(whole_page())
    policy = next(attributes["content"] for _, attributes in tags.tags if "http-equiv" in attributes)
    script = re.search(r"<script>(.*)</script>", whole_page(), re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';") and policy.endswith(f"script-src 'sha256-{digest}'")
    assert "connect-src" not in policy


def test_text_of_the_run_is_never_a_tag():
    hostile = dataclasses.replace(
        RUN,
        experiment=HOSTILE,
        workdir=HOSTILE,
        counts={HOSTILE: 1},
        differences=[SettingDifference(HOSTILE, HOSTILE, HOSTILE)],
        recall=[dataclasses.replace(curve, task=HOSTILE) for curve in RUN.recall],
    )
    page = render_page(hostile)
    count = [tag for tag, _ in Tags(page).tags].count("script")
    assert count == [tag for tag, _ in Tags(whole_page()).tags].count("script")
    assert HOSTILE not in page and html.escape("<b>") in page


def test_each_passage_is_stored_once():
    passages = block(whole_page(), "passages-0")
    assert len(passages) == 3 and len({text for _, text in passages}) == 3
    questions = block(whole_page(), "questions-0")
    gold = questions[0]["chunks"]["r_ft"][0]
    title, text = passages[gold["passage"]]
    start, end = gold["text_spans"][0]
    assert (title, text[start:end]) == ("Dray Tower", "Hob Crane")


def test_a_page_that_would_be_too_large_shows_a_sample_and_says_so():
    many = []
    for number in range(400):
        # Names that do not compress.
        name = hashlib.shake_256(str(number).encode()).hexdigest(128)
        many.append(question(number, "gained", f"Who built {name}?"))
    run = dataclasses.replace(RUN, questions=many, num_questions=400)
    whole = render_page(run)
    limit = len(whole.encode()) - 40_000
    page = render_page(run, limit + 100_000)
    assert len(page.encode()) <= limit + 100_000
    shown = len(block(page, "index"))
    assert 0 < shown < 400 and f"A sample: {shown} of 400 questions" in page
    assert "A sample" not in whole


def test_results_of_tasks_have_a_row_for_each_metric_and_an_average():
    systems = {name: {"em": figure(0.5, 0.4, 0.6)} for name in RESULTS["systems"]}
    task = {
        "systems": systems,
        "gains": RESULTS["gains"],
        "num_questions": 7,
        "split": "test",
        "questions": "all",
    }
    empty = {"systems": {}, "gains": {}, "num_questions": 3}
    average = {
        "systems": {name: {"mean": figure(0.5, 0.4, 0.6)} for name in systems},
        "gains": RESULTS["gains"],
    }
    results = {"tasks": {"nq": task, "fever": empty}, "average": average, "num_questions": 10}
    questions = [dataclasses.replace(one, task="nq") for one in QUESTIONS]
    words = words_of(render_page(dataclasses.replace(RUN, results=results, questions=questions)))
    assert "nq, em 50.0 40.0 – 60.0" in words and "Average 50.0" in words
    assert "nq: split test, all." in words and "fever has no gold answers here" in words


def test_retrievers_that_were_measured_alone_are_a_page():
    results = {name: RESULTS[name] for name in ("retrieval", "retrieval_gains", "num_ranked")}
    run = dataclasses.replace(BARE_RUN, results=results | {"systems": {}, "num_questions": 0}, lacks=[])
    page = render_page(run)
    assert re.findall('<section id="(.*?)"', page) == ["retrieval", "provenance"]


@pytest.mark.parametrize("missing", ["systems", "gains", "context"])
def test_results_in_another_form_are_an_error_that_says_what_to_do(missing):
    results = {**RESULTS, missing: {"radit": None}}
    with pytest.raises(ValueError, match="results.json: expected .* Run `radit run .* --stage=evaluate`"):
        render_page(dataclasses.replace(RUN, results=results))
