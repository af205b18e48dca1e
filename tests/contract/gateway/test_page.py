"""The page in a real browser against a real gateway: what is seen is what the gateway knows."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import expect

from shared.ids import WorkerId
from tests.support.browser import needs_chromium, page_of, violations
from tests.support.gateway import ScriptedSuite, raises, running_suite
from tests.support.timed import prefills_timed, says_timed
from tests.support.waiting import LIMIT_S, eventually

pytestmark = [needs_chromium, pytest.mark.timeout(120)]

LONG = "x" * 100  # computed in the east
SHOWN_MS = 1000 * LIMIT_S

expect.set_options(timeout=SHOWN_MS)


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[ScriptedSuite]:
    async with running_suite(tmp_path) as suite:
        suite.prefill.behave, suite.decode.behave = prefills_timed(96), says_timed("hello there", computed=4)
        yield suite


def url(suite: ScriptedSuite) -> str:
    return str(suite.client._base_url)


async def test_datacenters_and_their_workers_are_shown_and_a_lost_one_is_seen_within_seconds(
    suite: ScriptedSuite,
) -> None:
    async with page_of(url(suite)) as page:
        await expect(page.locator("#connection")).to_have_text("live")
        east, west = page.locator("[data-dc=east]"), page.locator("[data-dc=west]")
        await expect(west).to_contain_text("home of this gateway")
        await expect(west).to_contain_text("decode-west")
        await expect(east.get_by_text("ready")).to_have_count(2)  # a worker and a pool
        suite.parts.registry.lost(WorkerId("prefill-east"))
        await expect(east).to_contain_text("a call to it has failed", timeout=3_000)


async def test_an_answer_is_streamed_and_leads_to_its_timeline(suite: ScriptedSuite) -> None:
    async with page_of(url(suite)) as page:
        await page.get_by_label("Completion").check()
        await page.get_by_label("Prompt").fill(LONG)
        await page.get_by_role("button", name="Send").click()
        await expect(page.locator("#answer")).to_have_text("hello there")
        await expect(page.locator("#facts")).to_contain_text("100 tokens")
        await expect(page.locator("#ask-status")).to_have_text("The answer is complete.")
        await page.get_by_role("button", name="show it").click()
        fall = page.get_by_role("img", name="Request of 100 prompt tokens")
        await expect(fall).to_be_visible()
        await expect(fall.locator(".label.layer")).to_have_count(2)
        await expect(fall.locator(".track.layer .compute")).to_have_count(
            3
        )  # of layer 0 nobody knows when its last chunk began
        await expect(fall.locator(".track.layer .wire")).to_have_count(4)
        await expect(fall.locator(".track.layer .tick")).to_have_count(2)  # a gate each
        await expect(page.locator("#rows")).to_contain_text("prefill elsewhere")
        assert "#request=" in page.url
        await page.reload()
        await expect(page.get_by_role("img", name="Request of 100 prompt tokens")).to_be_visible()


async def test_a_failure_is_said_in_words(suite: ScriptedSuite) -> None:
    suite.decode.behave = raises(ValueError("broken"))
    async with page_of(url(suite)) as page:
        await page.get_by_role("button", name="Send").click()
        await expect(page.locator("#ask-status")).to_contain_text("Failed: ")
        await expect(page.locator("#rows .failed")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_people_who_cannot_see_it_can_use_it(suite: ScriptedSuite, scheme: str) -> None:
    answer = await suite.complete(prompt=LONG, max_tokens=5)
    where = f"{url(suite)}/#request={answer['id'].partition('-')[2]}"
    async with page_of(where, color_scheme=scheme) as page:
        await expect(page.locator("#connection")).to_have_text("live")
        await expect(page.locator("#timeline")).to_be_visible()
        assert await violations(page) == []


async def test_a_request_is_chosen_by_keyboard(suite: ScriptedSuite) -> None:
    await suite.complete(prompt=LONG, max_tokens=2)
    async with page_of(url(suite)) as page:
        button = page.locator("#rows button")
        await expect(button).to_have_count(1)
        await button.focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("#timeline-title")).to_be_focused()
        await expect(button).to_have_attribute("aria-pressed", "true")


async def test_it_fits_a_phone(suite: ScriptedSuite) -> None:
    answer = await suite.complete(prompt=LONG, max_tokens=5)
    where = f"{url(suite)}/#request={answer['id'].partition('-')[2]}"
    async with page_of(where, viewport={"width": 360, "height": 740}) as page:
        await expect(page.locator("#timeline")).to_be_visible()
        await expect(page.locator("#dcs")).to_contain_text("prefill-east")
        assert await page.evaluate("document.documentElement.scrollWidth") == 360


async def test_a_thousand_requests_are_few_elements_and_scroll_without_a_long_frame(suite: ScriptedSuite) -> None:
    for number in range(1_000):
        with suite.parts.timelines.follow(f"request-{number}", "chat") as timeline:
            timeline.prepared(10, 1, is_streamed=False)
    async with page_of(url(suite)) as page:
        await expect(page.locator("#table")).to_have_attribute("aria-rowcount", "1001")
        await expect(page.locator("#rows")).to_contain_text("request-999")
        assert await page.locator("#rows tr").count() < 60
        drawn = await page.evaluate(
            """async () => {
                const box = document.getElementById("scroller");
                const times = [];
                for (let i = 0; i < 60; i += 1) {
                    box.scrollTop = i * 420;
                    const began = performance.now();
                    await new Promise(requestAnimationFrame);
                    times.push(performance.now() - began);
                }
                return times.sort((a, b) => a - b)[30];
            }"""
        )
        assert drawn < 50, "milliseconds of a median frame; 17 without load"
        await page.evaluate("document.getElementById('scroller').scrollTop = 1e9")

        async def shows_the_oldest() -> bool:
            return "request-0" in await page.locator("#rows tr").nth(-2).inner_text()

        await eventually(shows_the_oldest)


async def test_what_a_client_says_never_becomes_markup(suite: ScriptedSuite) -> None:
    evil = "<img src=x onerror=alert(1)>"
    async with suite.client.post(
        "/v1/completions", json={"prompt": "x", "max_tokens": 1}, headers={"X-Request-Id": evil}
    ) as response:
        assert response.status == 200
    async with page_of(url(suite)) as page:
        await page.locator("#rows button").click()
        await expect(page.locator("#timeline-sum")).to_contain_text(evil)
        assert await page.locator("img").count() == 0


async def test_a_gateway_with_keys_asks_for_one_and_shows_all_to_an_observer(tmp_path: Path) -> None:
    async with running_suite(tmp_path, api_key="pk-mine") as suite, page_of(url(suite), expected=("401",)) as page:
        field = page.get_by_label("API key")
        await expect(field).to_be_visible()
        await expect(page.locator("#connection")).not_to_have_text("live")
        await field.fill("pk-mine")
        await page.get_by_role("button", name="Use it").click()
        await expect(page.locator("#connection")).to_have_text("live")
        await expect(field).not_to_be_visible()
        assert await violations(page) == []
        await page.get_by_role("button", name="Send").click()
        await expect(page.locator("#ask-status")).to_have_text("The answer is complete.")
