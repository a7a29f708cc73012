"""The chat page in a real Chromium: it streams, stops, remembers, says what is wrong, and takes no text for HTML."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright
from tests.engine.conftest import make_model, make_tokenizer, tiny
from tests.serve.conftest import KEY, Served, serving

from tallow.models.formats import save_model

CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = """<img src=x onerror="window.hacked = 1"> <script>window.hacked = 2</script>
[link](javascript:window.hacked=3) [data](data:text/html,<script>window.hacked=4</script>) ![image](http://127.0.0.1:1/x.png)
# <svg onload=window.hacked=5>
- **bold <iframe srcdoc="<script>parent.hacked=6</script>">** and [good](https://example.org/a_b_c)
```html
</code></pre><script>window.hacked = 7</script>
```
| <b>head</b> |
|---|
| *cell* `<i>` |
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        options = {"executable_path": str(CHROMIUM)} if CHROMIUM.exists() else {}
        browser = playwright.chromium.launch(args=["--no-sandbox"], **options)  # type: ignore[arg-type]
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser that knows nothing yet; whatever fails on a page fails the test."""
    context = browser.new_context()
    context.set_default_timeout(30_000)
    failures: list[str] = []
    context.on("weberror", lambda error: failures.append(str(error.error)))
    yield context
    context.close()
    assert failures == []


@pytest.fixture
def page(context: BrowserContext, served: Served) -> Page:
    return visit(context, served)


def visit(context: BrowserContext, served: Served) -> Page:
    page = context.new_page()
    page.goto(served.url)
    expect(page.locator("#state")).to_have_attribute("data-state", "ready")
    return page


def say(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")


def set_up(page: Page, **settings: str) -> None:
    page.get_by_role("button", name="Settings").click()
    for name, value in settings.items():
        page.locator(f"#{name}").fill(value)
    page.get_by_role("button", name="Done").click()


def stub_answer(page: Page, text: str) -> None:
    """The next answers are this text: a model cannot be told what to say."""
    pieces: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": text[at : at + 5]}}]} for at in range(0, len(text), 5)
    ]
    pieces.append({"choices": [], "usage": {"completion_tokens": len(pieces)}})
    body = "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces) + "data: [DONE]\n\n"
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(status=200, content_type="text/event-stream", body=body)
    )


def requested(page: Page, act: Callable[[], None]) -> dict[str, Any]:
    """The body of the request that an act leads to."""
    with page.expect_request("**/v1/chat/completions") as request:
        act()
    body = request.value.post_data_json
    assert body is not None
    return body


def test_a_conversation_is_held(page: Page) -> None:
    set_up(page, system="Be brief.", temperature="0.5", top_p="0.9", max_tokens="20", seed="7")
    message = page.get_by_label("Message")
    message.type("two")
    message.press("Shift+Enter")
    message.type("lines")
    body = requested(page, lambda: message.press("Enter"))
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "two\nlines"},
    ]
    sampling = {name: body[name] for name in ("model", "temperature", "top_p", "max_tokens", "seed", "stream")}
    assert sampling == {
        "model": "tiny",
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 20,
        "seed": 7,
        "stream": True,
    }
    below = page.locator(".assistant .below")
    expect(below).to_contain_text(re.compile(r"20 tokens · ([\d.,]+ tokens/s · )?first after [\d.]+ m?s · cut off at"))
    first = page.locator(".assistant .text").inner_text()
    assert first
    assert requested(page, page.get_by_role("button", name="Regenerate").click) == body
    expect(below).to_contain_text("20 tokens")
    assert page.locator(".assistant .text").inner_text() == first, "the same seed"
    turns = requested(page, lambda: say(page, "and then?"))["messages"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]


def test_a_reload_forgets_nothing(page: Page) -> None:
    set_up(page, max_tokens="8", system="Remember.")
    say(page, "keep this")
    expect(page.locator(".below")).to_contain_text("first after")
    before = page.locator("#log").inner_text()
    page.reload()
    expect(page.locator("#log")).to_have_text(before, use_inner_text=True)
    assert page.locator("#system").input_value() == "Remember."
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_text("What shall we talk about?")).to_be_visible()
    page.reload()
    expect(page.locator(".user")).to_have_count(0)


def test_a_hostile_answer_stays_text(page: Page) -> None:
    loaded: list[str] = []
    page.on("request", lambda request: loaded.append(request.url))
    stub_answer(page, HOSTILE)
    say(page, "<img src=x onerror=window.hacked=0>")
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
    page.reload()
    text = page.locator(".assistant .text")
    expect(text).to_contain_text("<script>window.hacked = 7</script>")
    expect(page.locator(".user")).to_have_text("<img src=x onerror=window.hacked=0>")
    assert page.evaluate("window.hacked") is None
    assert page.locator("#log").locator("img, script, iframe, svg, object, [onerror], [onload], b").count() == 0
    links = [link.get_attribute("href") for link in text.locator("a").all()]
    assert links == ["http://127.0.0.1:1/x.png", "https://example.org/a_b_c"], "an image is a link, a script is nothing"
    assert all(link.get_attribute("rel") == "noopener noreferrer" for link in text.locator("a").all())
    assert text.locator("td em").inner_text() == "cell"
    assert not [url for url in loaded if ":1/" in url or "example.org" in url]


def test_markdown_takes_linear_time_at_worst(page: Page) -> None:
    for hostile in ("*a " * 30_000, "[" * 60_000, "`" * 60_001 + "a", "> " * 20_000, "_a" * 40_000, "[a](" * 20_000):
        took = page.evaluate(
            """text => { const start = performance.now(), into = document.createElement("div");
                         painter(into)(text); return performance.now() - start; }""",
            hostile,
        )
        assert took < 5000, hostile[:10]


def test_a_phone_shows_it_all(browser: Browser, served: Served) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 640}, has_touch=True, color_scheme="dark")
    page = visit(context, served)
    wide = "x" * 200
    stub_answer(
        page, f"{wide}\n```\n{wide}\n```\n| {'a | ' * 40}\n|{'---|' * 41}\n[{wide}](https://example.org/{wide})"
    )
    say(page, wide)
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
    for button in ("Settings", "New conversation", "Send"):
        expect(page.get_by_role("button", name=button, exact=True)).to_be_in_viewport(ratio=1)
    for element in ("html", "#scroll", "#log"):
        assert page.locator(element).evaluate("found => found.scrollWidth <= found.clientWidth"), element
    page.get_by_role("button", name="Settings").click()
    expect(page.locator("#key")).to_be_in_viewport(ratio=1)
    context.close()


def test_an_answer_in_one_piece_has_no_speed(page: Page) -> None:
    stub_answer(page, "x" * 5000)
    say(page, "at once")
    expect(page.locator(".below")).to_contain_text(re.compile(r"^1000 tokens · first after"))


def test_what_the_server_says_is_shown(page: Page) -> None:
    set_up(page, temperature="200")
    say(page, "too hot")
    expect(page.locator(".assistant .wrong")).to_contain_text("temperature: Input should be less than or equal to 100")
    set_up(page, temperature="1", max_tokens="4")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".below")).to_contain_text("first after")
    expect(page.locator(".assistant .wrong")).to_have_count(0)


def test_a_model_that_loads_is_waited_for(page: Page) -> None:
    page.route("**/health", lambda route: route.fulfill(status=503, json={"status": "loading", "models": {}}))
    page.reload()
    expect(page.get_by_text("loading the model…")).to_be_visible()
    page.unroute("**/health")
    expect(page.locator("#state")).to_have_attribute("data-state", "ready")
    expect(page.get_by_text("loading the model…")).to_have_count(0)


def test_the_page_may_do_nothing_else(served: Served, page: Page) -> None:
    policy = httpx.get(served.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.evaluate("() => { try { document.body.innerHTML = '<b>'; return false } catch { return true } }"), (
        "not even its own script may write HTML"
    )


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with two keys and a log of prompts, and a model whose answers can be long."""
    folder = tmp_path_factory.mktemp("guarded")
    save_model(make_model(tiny(max_positions=1 << 15, num_layers=2)), make_tokenizer(), folder / "tiny")
    (folder / "keys").write_text(f"alice:{KEY}\nbob:sk-beta-2\n")
    arguments = (f"--keys-file={folder / 'keys'}", f"--log={folder / 'log.sqlite'}", "--log-prompts")
    with serving(folder / "serve.log", f"--model=tiny={folder / 'tiny'}", *arguments) as found:
        yield found


@pytest.fixture
def alice(browser: Browser, guarded: Served) -> Iterator[Page]:
    """A page that a browser has opened with her key."""
    context = browser.new_context(http_credentials={"username": "anybody", "password": KEY})
    yield visit(context, guarded)
    context.close()


def never_end(route: Route) -> None:
    route.continue_(post_data=json.dumps({**(route.request.post_data_json or {}), "ignore_eos": True}))


def test_an_answer_streams_and_is_stopped(alice: Page, guarded: Served) -> None:
    alice.route("**/v1/chat/completions", never_end)
    say(alice, "never end")
    text, below = alice.locator(".assistant .text"), alice.locator(".below")
    expect(text).not_to_be_empty()
    alice.wait_for_timeout(100)  # a speed is told of what takes longer than a moment
    alice.get_by_role("button", name="Stop").click()
    expect(alice.get_by_role("button", name="Send")).to_be_visible()
    expect(below).to_contain_text(re.compile(r"~\d+ tokens · [\d.,]+ tokens/s · first after [\d.]+ m?s · stopped"))
    kept = text.inner_text()
    alice.reload()
    assert text.inner_text() == kept
    expect(below).to_contain_text("stopped")
    with guarded.client(KEY) as client:
        deadline = time.monotonic() + 30
        while 'vllm:num_requests_running{model_name="tiny"} 0.0' not in client.get("/metrics").text:
            assert time.monotonic() < deadline, "nobody reads it, and yet it goes on"
            time.sleep(0.1)


def test_a_reload_amid_an_answer_keeps_what_there_is(alice: Page) -> None:
    alice.route("**/v1/chat/completions", never_end)
    say(alice, "never end")
    expect(alice.locator(".assistant .text")).not_to_be_empty()
    alice.reload()
    expect(alice.locator(".assistant .text")).not_to_be_empty()
    expect(alice.locator(".below")).to_contain_text("interrupted")
    expect(alice.get_by_role("button", name="Regenerate")).to_be_visible()


def test_the_browser_asks_for_the_key(alice: Page, guarded: Served) -> None:
    asked = httpx.get(guarded.url)
    assert asked.status_code == 401
    assert asked.headers["www-authenticate"].startswith("Basic ")
    assert httpx.get(f"{guarded.url}/v1/models").headers["www-authenticate"] == "Bearer"
    set_up(alice, max_tokens="5")
    say(alice, "the first question")
    expect(alice.locator(".below")).to_contain_text("first after")
    set_up(alice, key="sk-wrong")
    expect(alice.get_by_role("alert")).to_contain_text("this needs an API key")
    alice.get_by_role("button", name="Regenerate").click()
    expect(alice.locator(".assistant .wrong")).to_contain_text("this needs an API key")
    assert alice.evaluate("JSON.stringify(localStorage)").find("sk-wrong") < 0
    alice.get_by_role("button", name="Enter a key").click()
    alice.locator("#key").fill(KEY)
    alice.get_by_role("button", name="Done").click()
    expect(alice.get_by_role("alert")).to_be_hidden()
    alice.get_by_role("button", name="Try again").click()
    expect(alice.locator(".below")).to_contain_text("first after")


def test_other_sites_do_not_speak_with_the_browsers_password(guarded: Served) -> None:
    alice = httpx.BasicAuth("", KEY)
    models = f"{guarded.url}/v1/models"
    host = guarded.url.removeprefix("http://")
    for headers, status in (
        ({}, 200),
        ({"Origin": f"http://{host}"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://evil.example"}, 401),
        ({"Origin": "null"}, 401),
        ({"Sec-Fetch-Site": "cross-site"}, 401),
        ({"Sec-Fetch-Site": "same-site"}, 401),
    ):
        assert httpx.get(models, auth=alice, headers=headers).status_code == status, headers
    assert httpx.get(guarded.url, auth=alice, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200, "a link"
    assert httpx.get(models, headers={"Authorization": "Basic %%%"}).status_code == 401


def test_past_conversations_are_shown_to_their_key(alice: Page, guarded: Served) -> None:
    set_up(alice, max_tokens="6", system="Be brief.", seed="7")  # else an answer ends at once, now and then
    say(alice, "about candles")
    expect(alice.locator(".below")).to_contain_text("first after")
    say(alice, "and wicks")
    expect(alice.locator(".below")).to_have_count(2)
    expect(alice.locator(".below").last).to_contain_text("first after")
    told = alice.locator(".text").all_inner_texts()
    alice.get_by_role("button", name="New conversation").click()
    say(alice, "about wax")
    expect(alice.locator(".below")).to_contain_text("first after")
    alice.reload()
    alice.get_by_role("button", name="Past conversations").click()
    expect(alice.locator("#past-list button").first).to_contain_text("about wax")
    alice.get_by_role("button", name="about candles").click()
    expect(alice.locator(".user")).to_have_text(["about candles", "and wicks"])
    assert alice.locator(".text").all_inner_texts() == told
    with guarded.client(KEY) as client, guarded.client("sk-beta-2") as bob:
        mine = client.get("/conversations").json()["data"]
        assert [each["title"] for each in mine][:2] == ["about wax", "about candles"]
        assert bob.get("/conversations").json()["data"] == []
        assert bob.get(f"/conversations/{mine[0]['id']}").status_code == 404
        assert client.get("/conversations?limit=1").json()["data"] == mine[:1]
