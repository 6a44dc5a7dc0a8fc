"""The console in a browser: what people see and do, with a server that really serves."""

import json
import re

import httpx
import pytest

from hyprstream.runtime.adapters import open_adapters
from hyprstream.runtime.settings import Settings
from hyprstream.store.records import Note
from tests.server.console.proxy import Proxy

HOSTILE = "<img src=x onerror=document.title='hacked'>"
SCRIPT = f"{HOSTILE}<script>document.title=1</script>"


@pytest.fixture
def expect(browser):
    """Assertions that wait until they hold."""
    del browser  # skips where there is none
    from playwright.sync_api import expect

    expect.set_options(timeout=15_000)
    return expect


def ask(page, question: str, most: int = 12) -> None:
    page.get_by_text("Sampling", exact=True).click()
    page.get_by_label("Most tokens").fill(str(most))
    page.get_by_label("Message", exact=True).fill(question)
    page.keyboard.press("Enter")


def choose(page, expect, name: str) -> None:
    expect(page.get_by_role("status").get_by_text("connected", exact=True)).to_be_visible()
    page.get_by_label("Model on the right").select_option(name)


def test_both_models_answer_side_by_side_and_can_be_stopped(visit, expect):
    page = visit().page
    choose(page, expect, "team/clerk")
    ask(page, "Hello", most=1900)
    answers = page.locator(".answer")
    for n in range(2):  # as they come
        expect(answers.nth(n)).to_have_attribute("aria-busy", "true")
        expect(answers.nth(n)).not_to_be_empty()
    expect(page.get_by_label("Answer of model")).to_be_visible()
    expect(page.get_by_label("Answer of team/clerk")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_text("stopped").first).to_be_visible()
    for n in range(2):
        expect(answers.nth(n)).to_have_attribute("aria-busy", "false")
    expect(page.locator("#stop")).to_be_hidden()
    page.get_by_label("Most tokens").fill("5")
    page.get_by_label("Message", exact=True).fill("And again")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text(re.compile(r"5 tok"))).to_have_count(2)
    expect(page.locator(".turn")).to_have_count(2)


def test_what_is_said_of_an_answer_reaches_the_journal(visit, expect, console):
    page = visit().page
    choose(page, expect, "poet")
    ask(page, "Who are you?")
    cell = page.get_by_label("Answer of poet")
    cell.get_by_role("button", name="Good").click()
    expect(cell.get_by_text("the adapter does not learn")).to_be_visible()
    with console.client() as client:

        def counted() -> tuple[int, int]:
            samples = client.get("/v1/training/poet/status").json()["samples"]
            return samples["waiting"] + samples["held_out"], samples["withdrawn"]

        client.post("/v1/training/poet/start", json={"learn": "feedback"}).raise_for_status()
        before, withdrawn = counted()
        page.get_by_label("Message", exact=True).fill("And what do you do?")
        page.keyboard.press("Enter")
        cell = page.get_by_label("Answer of poet").nth(1)
        cell.get_by_role("button", name="Good").click()
        # By chance it may have ended itself, and is kept as it is until it is corrected.
        told = cell.get_by_text(re.compile("cut off: write|kept, to"))
        expect(told).to_be_visible()
        withdrawn += "kept" in told.inner_text()
        expect(cell.get_by_role("button", name="Good")).to_have_attribute("aria-pressed", "true")
        cell.get_by_role("button", name="Correct").click()
        text = cell.get_by_label("What the answer should have been")
        expect(text).to_be_focused()
        text.fill("I write verses.")
        page.keyboard.press("Control+Enter")
        expect(text).to_have_count(0)
        expect(cell.get_by_text("kept, to")).to_be_visible()
        expect(cell.get_by_role("button", name="Correct")).to_be_focused()
        assert counted() == (before + 1, withdrawn)
        cell.get_by_role("button", name="Bad").click()
        expect(cell.get_by_text("nothing is learnt of this answer")).to_be_visible()
        assert counted() == (before, withdrawn + 1)
        client.post("/v1/training/poet/stop").raise_for_status()
    assert page.get_by_label("Answer of model").get_by_role("button").count() == 0


def test_a_name_is_moved_and_taken_back_and_what_serves_changes(visit, expect, console):
    with open_adapters(Settings(home=console.home)) as adapters:
        first = adapters.resolve("team/clerk")
        second = adapters.compress("team/clerk", "raw").version
    page = visit().page
    with console.client() as client:

        def served() -> str:
            return client.get("/v1/models/team/clerk").json()["version"]

        assert served() == second
        page.locator("#adapter-list summary").filter(has_text="team/clerk").click()
        page.get_by_role("button", name=f"Promote {first[:8]}").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        assert served() == second
        page.get_by_role("button", name=f"Promote {first[:8]}").click()
        expect(page.get_by_role("dialog").get_by_role("button", name="Promote")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_text(f"team/clerk answers with {first[:8]}")).to_be_visible()
        assert served() == first
        expect(page.get_by_role("log").get_by_text("promoted in the console")).to_be_visible()
        page.get_by_role("button", name="Roll back").click()
        page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
        expect(page.get_by_text(f"team/clerk answers with {second[:8]}")).to_be_visible()
        assert served() == second
        expect(page.locator("#adapter-list .current")).to_contain_text(second[:8])


def teach(client: httpx.Client, name: str) -> None:
    """Send what an untrained model finds likely, and the gate is therefore willing to try."""
    printable = {str(token): -100 for token in range(94, 256)}
    for n in range(14):
        question = [{"role": "user", "content": f"Question {n * n}?"}]
        body: dict[str, object] = {"messages": question, "model": name, "max_tokens": 24}
        body |= {"temperature": 0.7, "logit_bias": printable, "seed": n}
        answer = client.post("/v1/chat/completions", json=body).json()
        said = {"id": answer["id"], "correction": answer["choices"][0]["message"]["content"]}
        kept = client.post("/v1/feedback", json=said).json()["recorded"]
        assert kept in ("waiting", "held_out")


def test_curves_and_verdicts_appear_while_an_adapter_learns(visit, expect, console):
    page = visit().page
    with console.client() as client:
        client.post("/v1/adapters", json={"name": "pupil", "rank": 2}).raise_for_status()
        expect(page.get_by_label("Adapter whose learning").locator("option")).to_have_count(3)
        page.get_by_label("Adapter whose learning").select_option("pupil")
        expect(page.locator("#lesson")).to_have_text("Not learning")
        page.locator("#control").get_by_role("button", name="Start").click()
        expect(page.get_by_text("pupil learns from now on")).to_be_visible()
        teach(client, "pupil")
        chart = page.locator("#chart svg")
        expect(chart.locator(".train-line")).to_be_visible(timeout=30_000)
        expect(chart.locator(".verdict").first).to_be_visible(timeout=30_000)
        decisions = client.get("/v1/training/pupil/status").json()["decisions"]
    assert decisions[0]["numbers"]["steps"] > 0
    verdict = decisions[0]["action"]
    expect(page.get_by_role("log").locator(f"[data-kind={verdict}]").first).to_be_visible()
    expect(page.get_by_role("img", name="Losses by step")).to_be_visible()
    page.locator("#control").get_by_role("button", name="Stop").click()
    expect(page.get_by_text("pupil learns no more")).to_be_visible()


def test_text_of_models_and_names_stays_text(visit, expect, console):
    """No model says this of itself, so its answers are written here; names, by the store."""
    with open_adapters(Settings(home=console.home)) as adapters:
        adapters.compress("poet", "raw", note=Note(by=HOSTILE, why=HOSTILE))
    page = visit().page

    def hostile(route):
        choice = {"index": 0, "delta": {"content": SCRIPT}, "finish_reason": "stop"}
        chunk = {"id": "chatcmpl-1", "system_fingerprint": HOSTILE, "choices": [choice]}
        body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route("**/v1/chat/completions", hostile)
    models = {
        "object": "list",
        "data": [
            {"id": "model", "parent": None},
            {"id": HOSTILE, "parent": "model", "version": HOSTILE},
        ],
    }
    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    page.reload()
    choose(page, expect, HOSTILE)
    ask(page, HOSTILE)
    expect(page.locator(".answer").nth(1)).to_have_text(SCRIPT)
    expect(page.locator(".question")).to_have_text(HOSTILE)
    expect(page.get_by_role("log").get_by_text(HOSTILE).first).to_be_visible()
    expect(page.locator("#adapter-list .name")).to_have_text(HOSTILE)
    assert page.title() == "Hyprstream"
    assert page.locator("img, main script").count() == 0


def test_the_keyboard_alone_is_enough(visit, expect):
    page = visit().page
    choose(page, expect, "poet")
    page.locator("body").press("Tab")
    expect(page.get_by_text("Skip to the message")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.keyboard.type("Hello")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("there")
    expect(page.get_by_label("Message", exact=True)).to_have_value("Hello\nthere")
    page.keyboard.press("Enter")
    expect(page.locator(".answer").first).to_have_attribute("aria-busy", "true")
    page.keyboard.press("Escape")
    expect(page.locator(".answer").first).to_have_attribute("aria-busy", "false")
    # Everything that can be used is reached, in the order of the page, and shows where one is.
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """() => { const one = document.activeElement; const style = getComputedStyle(one);
            return [one.id || one.textContent.slice(0, 20), style.outlineStyle,
                    one.matches('a, button, input, select, textarea, summary, [tabindex]')]; }"""
        )
        if found[0] in reached or not found[2]:
            break
        assert found[1] != "none", f"{found[0]} does not show that it has the focus"
        reached.append(found[0])
    for wanted in ("clear", "send", "learner", "policy", "log"):
        assert wanted in reached
    assert "start" in reached or "halt" in reached
    assert reached.index("learner") < reached.index("log")


@pytest.mark.parametrize(("scheme", "width"), [("light", 320), ("dark", 400)])
def test_a_phone_shows_all_of_it(visit, expect, scheme, width):
    page = visit(viewport={"width": width, "height": 700}, color_scheme=scheme).page
    choose(page, expect, "poet")
    ask(page, "A" * 300)
    expect(page.locator(".cell .facts").nth(1)).not_to_be_empty()
    for view in ("Learning", "Adapters", "Events", "Chat"):
        page.get_by_role("navigation").get_by_role("button", name=view).click()
        expect(page.locator(f"#{view.lower()}")).to_be_visible()
        if view == "Adapters":
            page.locator("#adapter-list summary").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("document.querySelector('main').scrollWidth") == width
    light, ink = page.evaluate(
        """() => ['background-color', 'color'].map(name =>
        getComputedStyle(document.body).getPropertyValue(name).match(/\\d+/g)
        .reduce((sum, part) => sum + Number(part), 0))"""
    )
    assert (light > ink) == (scheme == "light")


def test_it_moves_little_for_those_who_ask_for_that(visit, expect):
    page = visit(reduced_motion="reduce").page
    expect(page.get_by_text("connected", exact=True)).to_be_visible()
    moving = page.evaluate("document.getAnimations().length")
    assert moving == 0


def test_nothing_leaves_the_origin(visit, expect, console):
    opened = visit()
    choose(opened.page, expect, "poet")
    ask(opened.page, "Hello")
    expect(opened.page.locator(".cell .facts").nth(1)).not_to_be_empty()
    assert len(opened.asked) > 10
    assert {url.split("/")[2] for url in opened.asked} == {console.url.split("/")[2]}


def test_a_key_is_asked_for_and_a_wrong_one_is_told(visit, expect, console):
    page = visit(key="").page
    box = page.get_by_label("Key", exact=True)
    expect(box).to_be_focused()
    page.keyboard.press("Escape")
    expect(box).to_be_visible()
    box.fill("hs-wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_text("This is no key of this server.")).to_be_visible()
    box.fill(console.key)
    page.keyboard.press("Enter")
    expect(page.get_by_text("connected", exact=True)).to_be_visible()
    expect(page.locator("#gauges")).to_contain_text("tokens/s")
    kept = page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]")
    assert kept == [[console.key], 0, ""]


def test_a_limited_key_sees_its_adapters_and_is_told_what_it_may_not(visit, expect, console):
    page = visit(key=console.limited).page
    expect(page.locator("#adapter-list .name")).to_have_text(["poet"])
    expect(page.locator("#gauges")).to_be_hidden()
    page.locator("#adapter-list summary").click()
    page.get_by_role("button", name="Roll back").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(page.get_by_text("needs the scope admin")).to_be_visible()


def test_a_server_that_is_gone_is_told_of_and_found_again(visit, expect, console):
    with Proxy(console.url) as proxy:
        page = visit(url=proxy.url).page
        choose(page, expect, "poet")
        proxy.cut()
        expect(page.get_by_role("alert").get_by_text("does not answer")).to_be_visible()
        ask(page, "Hello")
        expect(page.locator(".cell .said").first).to_have_text("the server does not answer")
        proxy.mend()
        expect(page.get_by_text("connected", exact=True)).to_be_visible(timeout=15_000)
        expect(page.get_by_role("alert")).to_have_count(0)
        page.get_by_label("Message", exact=True).fill("Hello")
        page.keyboard.press("Enter")
        expect(page.locator(".turn").last.locator(".facts").last).not_to_be_empty()


def test_the_page_is_served_to_strangers_and_says_what_it_may_do(console):
    with httpx.Client(base_url=console.url, trust_env=False) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        names = re.findall(r'(?:src|href)="(console/[^"]+)"', page.text)
        assert len(names) == 5
        for name in ["", *names]:
            answer = client.get(f"/{name}")
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            again = client.get(f"/{name}", headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        for name in ("x.js", "..%2fapp.py", "%2e%2e/app.py", "index.html%00.js", "../app.py"):
            assert client.get(f"/console/{name}").status_code in (401, 404)
