"""The page in a real browser, a headless Chromium: what a reader sees and does.

The tests are skipped where there is no Chromium (Debian's package `chromium`).
"""

import dataclasses
import re
import shutil

import pytest
from report_runs import HOSTILE, QUESTIONS, RTL_TEXT, RUN, answer

from radit_jax.report.comparison import compare_runs
from radit_jax.report.comparison_page import render_comparison
from radit_jax.report.page import render_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
LISTED = "#list .question .words"


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The sandbox refuses to run as root, as in a container; the page is our own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page(RUN), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def open_at(chromium):
    """Opens a page; at the end, that none asked for anything and that nothing went wrong in it."""
    pages, faults, requests, addresses = [], [], [], {"data:,"}

    def opened(address, width=1280, height=900, hash="", **options):
        page = chromium.new_page(viewport={"width": width, "height": height}, **options)
        pages.append(page)
        addresses.add(address)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address + hash)
        return page

    yield opened
    for page in pages:
        page.close()
    assert faults == []
    assert {url.partition("#")[0] for url in requests} <= addresses


@pytest.fixture
def open_page(open_at, address):
    """Opens the page of a run."""

    def opened(**options):
        page = open_at(address, **options)
        page.wait_for_selector(LISTED)
        return page

    return opened


def listed(page):
    return page.locator(LISTED).all_inner_texts()


def choose_filter(page, value):
    page.check(f"input[value='{value}']", force=True)


def wait_for_detail(page, words):
    """Wait until the question that `words` are of is open; a script that waits meets the page's policy."""
    page.locator("#detail h3", has_text=words).wait_for()
    return page.locator("#detail")


def detail_of(page, words):
    page.locator("#list .question", has_text=words).click()
    return wait_for_detail(page, words)


def test_filters_change_the_list(open_page):
    page = open_page()
    assert len(listed(page)) == 5 and page.inner_text("#count") == "5 questions"
    expected = {
        "gained": [QUESTIONS[0].question, QUESTIONS[1].question],
        "lost": [RTL_TEXT],
        "wrong": [HOSTILE],
        "no-gold": [HOSTILE],
    }
    for value, questions in expected.items():
        choose_filter(page, value)
        assert listed(page) == questions
        assert page.inner_text("#count") == f"{len(questions)} of 5 questions"
    choose_filter(page, "all")
    assert len(listed(page)) == 5


def test_tasks_are_a_choice_where_there_are_several(chromium, tmp_path):
    tasks = [dataclasses.replace(one, task="nq" if one.id < "q3" else "fever") for one in QUESTIONS]
    path = tmp_path / "tasks.html"
    path.write_text(render_page(dataclasses.replace(RUN, questions=tasks)), encoding="utf-8")
    page = chromium.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector(LISTED)
    page.select_option("#task", "fever")
    assert listed(page) == [QUESTIONS[3].question, QUESTIONS[4].question]
    choose_filter(page, "wrong")
    assert listed(page) == [QUESTIONS[3].question]
    assert detail_of(page, "broken").locator(".kicker").inner_text() == "fever · wrong before and after"
    page.close()


def test_search_finds_words_of_questions_and_answers_in_any_case(open_page):
    page = open_page()
    page.fill("#search", "2ND tower")
    assert listed(page) == ["Who built the 2nd tower?"]
    page.fill("#search", "finch")
    assert listed(page) == [RTL_TEXT, HOSTILE]
    page.fill("#search", "of nowhere")
    assert listed(page) == [] and page.inner_text("#count") == "0 of 5 questions"


def test_a_question_has_its_answers_chunks_and_candidates(open_page):
    detail = detail_of(open_page(), "2nd tower")
    # Each system's answer, right or wrong.
    rows = detail.locator(".systems tbody tr").all_inner_texts()
    cells = [row.split("\t")[:3] for row in rows]
    assert cells == [
        ["base LM, no chunks", "✗", "(no answer)"],
        ["base LM, base retriever", "✗", "Ada Finch"],
        ["RA-DIT: LM-ft, R-ft", "✓", "Hob Crane"],
    ]

    # Chunks in R-ft's order, then what is retrieved no more; with ranks before and after.
    chunks = detail.locator(".chunks > li")
    titles = chunks.locator(".title b").all_inner_texts()
    assert titles == ["Dray Tower", HOSTILE, "Elm Tower"]
    ranks = [chunks.nth(place).locator(".rank p span").all_inner_texts() for place in range(3)]
    assert ranks == [["#2", "#1"], ["–", "#2"], ["#1", "–"]]
    numbers = chunks.nth(0).locator(".measure .number").all_inner_texts()
    assert numbers == ["40", "80", "70", "90"]  # p_R and p_LSR before, then after
    assert chunks.nth(0).locator("mark").all_inner_texts() == ["Hob Crane"]

    # The candidates in the ensemble, and under each chunk.
    matrix = detail.locator(".matrix").last
    first = matrix.locator("tbody tr").first
    assert first.locator("th, .number, .cell").all_inner_texts() == ["Hob Crane", "75", "90", "25"]


def test_a_bar_is_as_long_as_its_probability(open_page):
    detail = detail_of(open_page(), "2nd tower")
    bars = detail.locator(".chunks > li").first.locator(".bar")
    sizes = [bars.nth(place).evaluate("bar => getComputedStyle(bar).backgroundSize") for place in range(4)]
    assert [float(size.partition("%")[0].removeprefix("calc(")) for size in sizes] == [40, 80, 70, 90]


def test_text_that_looks_like_html_is_text(open_page):
    page = open_page()
    choose_filter(page, "wrong")
    detail = detail_of(page, "broken")
    assert detail.locator("h3").inner_text() == HOSTILE
    assert page.title() == "small: RA-DIT report"
    assert detail.locator("script").count() == 0
    passage = detail.locator(".chunks > li").nth(1).locator(".passage").inner_text()
    assert passage == f"{HOSTILE} A passage."


def test_text_from_right_to_left_is_set_from_the_right(open_page):
    heading = detail_of(open_page(), RTL_TEXT).locator("h3")
    assert heading.inner_text() == RTL_TEXT
    assert heading.evaluate("heading => getComputedStyle(heading).direction") == "rtl"


def test_arrows_walk_through_the_list(open_page):
    page = open_page()
    page.locator("#list .question").first.focus()
    page.keyboard.press("ArrowDown")
    wait_for_detail(page, "2nd")


def test_a_question_has_an_address(open_page):
    page = open_page(hash="#question=q4")
    wait_for_detail(page, "Fen Tower")


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_the_page_is_light_or_dark_as_the_reader_has_it(open_page, scheme, is_dark):
    page = open_page(color_scheme=scheme)
    assert (brightness(page, "body", "backgroundColor") < 60) == is_dark
    assert (brightness(page, "body", "color") > 180) == is_dark
    # The charts, too: the titles of their rows have the page's colour.
    ink = page.evaluate("getComputedStyle(document.body).color")
    title = page.locator("#answers svg text", has_text="base LM, no chunks").first
    assert title.evaluate("text => getComputedStyle(text).fill") == ink


def brightness(page, selector, property):
    script = "([selector, property]) => getComputedStyle(document.querySelector(selector))[property]"
    colour = page.evaluate(script, [selector, property])
    parts = colour.removeprefix("rgb(").removesuffix(")").split(", ")
    return sum(map(int, parts)) / 3


def test_a_phone_never_scrolls_sideways(open_page):
    page = open_page(width=360, height=740)
    for words in ("2nd tower", RTL_TEXT):
        detail_of(page, words)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
    # The question opens where it was touched, and closes again.
    assert page.locator("#list li #detail").count() == 1
    page.locator("#list .question", has_text=RTL_TEXT).click()
    assert page.locator("#detail").count() == 0
    # A phone has the charts that are drawn for it.
    assert page.locator(".wide").first.is_hidden() and page.locator(".narrow").first.is_visible()


def test_paper_has_the_figures_and_the_question_but_no_controls(open_page):
    page = open_page(color_scheme="dark")
    detail_of(page, "2nd tower")
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 680, "height": 900})  # a sheet's width
    for selector in ("nav", "#filters", "#list", "#count"):
        assert page.locator(selector).is_hidden(), selector
    assert page.locator("#detail h3").is_visible() and page.locator("#answers .narrow svg").first.is_visible()
    assert brightness(page, "body", "color") < 60  # dark ink, whatever the screen has
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_the_first_view_of_a_page_of_many_questions_opens_within_two_seconds(chromium, tmp_path):
    many = []
    for number in range(1000):
        many.append(dataclasses.replace(QUESTIONS[0], id=f"q{number}", question=f"Who built tower {number}?"))
    path = tmp_path / "large.html"
    path.write_text(
        render_page(dataclasses.replace(RUN, questions=many, num_questions=1000)), encoding="utf-8"
    )
    page = chromium.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector(LISTED)
    painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert painted < 2000
    # The list has a part of them, and the rest when it is asked for.
    assert len(listed(page)) == 100
    page.locator(".more button").click()
    assert len(listed(page)) == 200
    page.close()


# ---- runs side by side ----


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The address of a page on two runs, of which the second is better by the same on every question."""
    runs = []
    first_scores = (0.8, 0.2, 0.4, 0.0, 0.6)
    for workdir, more, tau in (("runs/a", 0.0, 0.02), (f"runs/{HOSTILE}", 0.2, 0.5)):
        questions = []
        for question, score in zip(QUESTIONS, first_scores, strict=True):
            systems = dict.fromkeys(("closed_book", "base", "lm_ft", "r_ft"), answer("x", 0.0))
            systems["radit"] = answer("y", score + more)
            questions.append(dataclasses.replace(question, systems=systems))
        settings = {**RUN.settings, "r_ft.tau": tau}
        runs.append(dataclasses.replace(RUN, workdir=workdir, questions=questions, settings=settings))
    path = tmp_path_factory.mktemp("compared") / "compare.html"
    path.write_text(render_comparison(compare_runs(runs)), encoding="utf-8")
    return path.as_uri()


def numbers_in(cell):
    return [float(number.replace("−", "-")) for number in re.findall(r"[+−-]?\d+\.\d", cell)]


def test_a_comparison_shows_each_runs_figure_and_the_paired_gain_with_their_intervals(open_at, compared):
    page = open_at(compared)
    # A run is called by the last part of its path.
    assert page.title() == f"a, {HOSTILE.rpartition('/')[2]}: RA-DIT comparison"
    row = page.locator("tr.strong", has_text="RA-DIT").first.locator("td").all_inner_texts()
    first, second, gain = map(numbers_in, row)
    assert (first[0], second[0], gain[0]) == (40.0, 60.0, 20.0)
    for value, low, high in (first, second):
        assert low < value < high
    # Each question is compared with itself, and all of them gain the same.
    assert gain == [20.0, 20.0, 20.0]


def test_a_comparison_draws_the_gain_where_the_table_has_it(open_at, compared):
    page = open_at(compared)
    chart = page.locator("#figures .wide svg").first
    words = chart.locator("text").all_text_contents()
    assert any("RA-DIT" in word for word in words) and chart.is_visible()
    assert page.locator("#figures .narrow").first.is_hidden()
    assert page.locator("#settings tbody").inner_text().split() == ["r_ft.tau", "0.02", "0.5"]


def test_a_comparison_on_a_phone_scrolls_its_table_alone(open_at, compared):
    page = open_at(compared, width=360, height=740)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("#figures .narrow svg").first.is_visible()
    # What is cut off is reached with a touch and the arrow keys.
    table = page.locator("#figures .scroll").first
    assert table.evaluate("table => table.scrollWidth > table.clientWidth")
    table.click()
    table.press("ArrowRight")
    # The page's policy lets no script wait for it.
    for _ in range(50):
        page.wait_for_timeout(100)
        if table.evaluate("table => table.scrollLeft") > 0:
            break
    assert table.evaluate("table => table.scrollLeft") > 0


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_a_comparison_is_light_or_dark_as_the_reader_has_it(open_at, compared, scheme, is_dark):
    page = open_at(compared, color_scheme=scheme)
    assert (brightness(page, "body", "backgroundColor") < 60) == is_dark
