"""The page of `radit serve` in a real Chromium; skipped where there is none."""

import shutil

import pytest
from quick_service import Quick, with_client

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
MARKUP = "<b onclick='x()'>\"bold\"</b> &amp; </script>"


class Shown(Quick):
    def describe_chunks(self, retrieved, place):
        chunk = {"p_R": 0.75, "title": MARKUP, "text": "Bo built it."}
        return {"chunks": [chunk], "base_chunks": []}


def in_page(body, *, hash="", **options):
    """What `body(page)` returns in the page of a service, and what went wrong in it."""
    from playwright.async_api import async_playwright

    async def run(client):
        faults = []
        async with async_playwright() as playwright:
            # The sandbox refuses to run as root, as in a container; the page is our own.
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = await browser.new_page(viewport={"width": 360, "height": 740})
            page.on("console", lambda message: faults.append(message.text))
            page.on("pageerror", lambda error: faults.append(str(error)))
            await page.goto(f"http://127.0.0.1:{client.port}/{hash}")
            said = await body(page)
            await browser.close()
        return said, faults

    return with_client(Shown(), run, **options)


async def ask(page, question):
    await page.fill("#question", question)
    await page.click("#ask")
    await page.wait_for_selector("#ask:enabled")


def test_a_question_shows_its_answers_and_chunks_as_text_on_a_phone():
    async def body(page):
        await ask(page, MARKUP)
        answers = await page.locator("#answers li").all_inner_texts()
        titles = await page.locator("#chunks .title").all_inner_texts()
        is_shown = await page.locator("#base_chunks-section").is_visible()
        width = await page.evaluate("document.documentElement.scrollWidth")
        return answers, titles, is_shown, width

    (answers, titles, is_shown, width), faults = in_page(body)
    assert [answer.split("\n")[-1] for answer in answers] == [MARKUP.upper()]
    assert titles == [MARKUP]
    assert not is_shown  # no chunks before R-ft are known here
    assert width <= 360
    assert faults == []


def test_an_error_is_said_and_the_token_comes_from_the_address():
    async def body(page):
        await ask(page, "Who?")
        return await page.inner_text("#status"), await page.locator("#answers li").count()

    (status, count), _ = in_page(body, token="secret")
    assert (status, count) == ("expected 'Authorization: Bearer TOKEN' with this server's token", 0)
    (status, count), faults = in_page(body, hash="#token=secret", token="secret")
    assert status.endswith(" s") and count == 1
    assert faults == []
