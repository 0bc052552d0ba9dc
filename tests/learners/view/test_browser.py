"""The viewer's page in a real browser: clicks, switches, keys, and nothing on the console."""

import shutil
import threading

import pytest

from learners.view.__main__ import Options, write_page
from learners.view.server import make_server
from tests import needs
from tests.view_fakes import HOSTILE, write_iteration, write_rollouts_alone, write_run

pytestmark = [pytest.mark.full]


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; without it the tests skip and say what to install."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
    needs.packages("playwright")
    if path is None:
        needs.lacking("Chromium", "apt-get install chromium", "in CI, which installs it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's sandbox does not work as root; the page under test is our own.
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser):
    """An empty tab; a console message, an uncaught error or a dialog fails the test."""
    context = browser.new_context(viewport={"width": 1300, "height": 900}, color_scheme="light")
    page = context.new_page()
    messages = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
    yield page
    context.close()
    assert messages == []


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("viewed") / "run"
    write_run(folder)
    return write_page(Options(folder, (0, 1), folder / "view.html"))


@pytest.fixture
def shown(tab, file):
    requests = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(file.as_uri())
    tab.wait_for_selector(".lane")
    yield tab
    assert requests == [file.as_uri()]


def fills(page):
    """Colours of the first lane's cells, as far as they have one."""
    return page.eval_on_selector_all(
        ".lane >> nth=0 >> .cell", "cells => cells.map(c => c.style.fill).filter(Boolean)"
    )


def test_the_decision_that_mattered_is_shown_first(shown):
    """One branch of the first task turned 0 into 1: it is chosen and shown next to its parent."""
    assert shown.locator(".lane").count() == 3
    assert shown.locator(".diamond").count() == 2
    assert "+1 against its parent" in shown.inner_text("#text")
    columns = shown.locator(".column")
    assert columns.count() == 2
    assert "reward 0" in columns.nth(0).inner_text()
    assert "reward 1" in columns.nth(1).inner_text()
    assert columns.nth(0).locator(".decision").inner_text() == "</search>"
    assert columns.nth(1).locator(".decision").inner_text() == "!</search>"
    first = shown.locator("#decisions tbody tr").first
    assert first.locator("td").nth(0).inner_text() == "root 0, token 2"
    assert "▲+1" in first.inner_text()


def test_a_sentence_sums_up_decisions_and_rewards(shown):
    """One branch turned 0 into 1, one wrote something else and earned as little."""
    assert shown.inner_text("#summary") == (
        "2 branches at 2 branch points: 1 better than the parent, 1 with different text but the "
        "same reward. Largest difference: token 2 of root 0, where “</search>” earned 0, "
        "“!</search></answer>” earned 1."
    )


def test_without_branches_the_page_shows_where_rollouts_diverged(tab, tmp_path):
    """Three of four rollouts answered 4 and earned 2/3 on average, one answered 5 and earned 0."""
    write_rollouts_alone(tmp_path / "run")
    tab.goto(write_page(Options(tmp_path / "run")).as_uri())
    assert tab.inner_text("#summary") == (
        "4 rollouts, no branches. Rewards from 0 to 1. Largest difference: token 1, where "
        "“4</answer>” earned 0.67, “5</answer>” earned 0 on average."
    )
    (row,) = tab.locator("#divergences tbody tr").all()
    assert row.locator("td").nth(0).inner_text() == "token 1"
    assert row.locator(".continuation").all_inner_texts() == ["␣4</answer>", "␣5</answer>"]
    assert [b.inner_text() for b in row.locator(".pick").all()] == ["◐ 0.67", "✗ 0"]
    row.locator(".pick").nth(1).click()
    assert tab.locator(".lane.chosen").get_attribute("aria-label").startswith("root 2: reward 0")
    assert "Δ 0.67" in tab.inner_text(".item")


def test_equal_rewards_do_not_tell_decisions_apart(tab, tmp_path):
    write_rollouts_alone(tmp_path / "run", ends=((" 4", 0.0), (" 5", 0.0)))
    tab.goto(write_page(Options(tmp_path / "run")).as_uri())
    assert "All rewards are 0, so they do not tell decisions apart" in tab.inner_text("#summary")
    assert tab.locator("#divergences").count() == 0


def test_the_ledger_shows_evaluations_in_a_column_of_their_own_and_memory(tab, tmp_path):
    write_rollouts_alone(tmp_path / "run")
    tab.goto(write_page(Options(tmp_path / "run")).as_uri())
    cells = {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts()
        for row in tab.locator("#ledger tbody tr").all()
    }
    assert cells["sampled tokens"] == ["12", "12", "5"]
    assert cells["judge calls"] == ["\u2013", "\u2013", "2"]
    assert cells["cost"] == ["\u2013", "\u2013", "0.5"]
    assert cells["peak"] == ["1,536 MiB", "1,536 MiB"]


def test_a_click_on_a_branch_compares_it_with_its_parent(shown):
    shown.locator(".lane", has_text="at 6").click()
    assert shown.locator(".lane.chosen").get_attribute("aria-label").startswith("branch 0·6·0")
    assert shown.locator(".column").nth(0).locator(".decision").inner_text() == " 4"
    assert shown.locator(".column").nth(1).locator(".decision").inner_text() == " 5"
    shown.locator(".diamond").first.click()
    assert shown.locator(".column").nth(1).locator(".decision").inner_text() == "!</search>"
    shown.locator("[data-pick]").nth(1).click()
    assert shown.locator(".column").nth(1).locator(".decision").inner_text() == " 5"


def test_every_mode_colours_by_its_own_numbers(shown):
    """Entropy grows along the root; the future value begins below 1 and ends above it."""
    colours = {}
    for mode in ("entropy", "future", "branching", "advantage", "plain"):
        shown.click(f"[data-mode={mode}]")
        assert shown.get_attribute(f"[data-mode={mode}]", "aria-checked") == "true"
        assert shown.locator('.mode[aria-checked="true"]').count() == 1
        colours[mode] = fills(shown)
    assert len({str(fill) for fill in colours.values()}) == 5
    assert colours["plain"] == []
    assert all(fill.startswith("rgba(136, 84, 178") for fill in colours["entropy"])
    assert colours["future"][0].startswith("rgba(213, 94, 0")
    assert colours["future"][-1].startswith("rgba(0, 114, 178")
    assert {fill[:14] for fill in colours["advantage"]} == {"rgba(213, 94, "}


def test_an_undefined_score_says_why(shown):
    shown.keyboard.press("j")
    shown.keyboard.press("3")
    assert "undefined: the policy had not been updated" in shown.inner_text("#legend")


def test_tools_are_folded_and_unfold(shown):
    shown.keyboard.press("u")
    call = shown.locator("#text details.call").first
    assert call.locator("summary").inner_text() == "search “Milo” → 2 tokens · 0.25 s"
    assert not call.locator(".result").is_visible()
    call.locator("summary").click()
    assert call.locator(".result").is_visible()
    shown.click("#fold")
    assert shown.inner_text("#fold") == "Fold tools"
    shown.keyboard.press("f")
    assert not shown.locator("#text details.call .result").first.is_visible()


def test_hovering_over_a_token_shows_its_numbers(shown):
    shown.keyboard.press("u")
    shown.locator("#text .t").nth(1).hover()
    numbers = shown.inner_text("#inspector")
    assert "token 1" in numbers
    assert "probability 60.7 %" in numbers
    assert "branching score \N{MINUS SIGN}0.571" in numbers
    assert "advantage \N{MINUS SIGN}0.5" in numbers
    shown.locator("#text .t").nth(2).click()
    shown.locator("#text .t").nth(0).hover()
    assert "token 2" in shown.inner_text("#inspector")


def test_hostile_text_stays_text(shown):
    shown.keyboard.press("j")
    assert shown.inner_text("h1") == HOSTILE
    assert shown.locator("img").count() == 0
    assert shown.evaluate("document.scripts.length") == 2


def test_the_security_policy_stops_injected_handlers_and_requests(browser, file):
    """A handler injected into the page does not run, and no request leaves it."""
    page = browser.new_page()
    page.goto(file.as_uri())
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"bad=1\">')")
    page.evaluate("fetch('http://127.0.0.1:1/').catch(e => { window.refused = String(e) })")
    page.wait_for_function("window.refused !== undefined")
    assert page.evaluate("window.bad") is None
    page.close()


def test_keys_walk_through_tasks_and_trajectories(shown):
    question = shown.inner_text("h1")
    shown.keyboard.press("j")
    assert shown.inner_text("h1") != question
    shown.keyboard.press("k")
    assert shown.inner_text("h1") == question
    chosen = shown.locator(".lane.chosen")
    names = []
    for key in "unnp]][":
        shown.keyboard.press(key)
        names.append(chosen.get_attribute("aria-label").partition(":")[0])
    assert names[:4] == ["root 0", "branch 0·2·0", "branch 0·6·0", "branch 0·2·0"]
    assert names[4:] == ["branch 0·6·0", "branch 0·2·0", "branch 0·6·0"]
    shown.keyboard.press("?")
    assert shown.locator("dialog").is_visible()
    shown.keyboard.press("Escape")
    assert not shown.locator("dialog").is_visible()


def test_a_lane_is_a_button_for_the_keyboard(shown):
    shown.locator(".lane").nth(2).focus()
    shown.keyboard.press("Enter")
    assert shown.locator(".lane").nth(2).get_attribute("aria-pressed") == "true"
    assert shown.evaluate("document.activeElement.dataset.index") == "2"


def test_tasks_are_found_and_sorted(shown):
    assert shown.locator(".item").count() == 2
    shown.keyboard.press("/")
    shown.keyboard.type("alert(1)")
    assert shown.locator(".item").count() == 1
    shown.fill("#search", "")
    shown.select_option("[aria-label=Order]", "order")
    assert shown.locator(".item").nth(0).get_attribute("data-tree") == "0"
    shown.select_option("[aria-label=Iteration]", "0")
    assert "iteration 0" in shown.inner_text("[aria-label=Iteration] option:checked")


def test_the_ledger_shows_the_iteration_and_the_run(shown):
    row = shown.locator("#ledger tr", has_text="sampled tokens")
    assert row.locator("td").all_inner_texts() == ["30", "60"]
    assert "Branches reused 25 % of this iteration\u2019s 40 tokens." in shown.inner_text("#ledger")


CONTRAST = """() => {
  const linear = c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = rgb => rgb.map((c, i) => linear(c / 255) * [0.2126, 0.7152, 0.0722][i])
    .reduce((a, b) => a + b);
  const parse = text => text.match(/[0-9.]+/g).map(Number);
  const ground = parse(getComputedStyle(document.body).backgroundColor);
  const worst = [...document.querySelectorAll('#text .t')].map(node => {
    const style = getComputedStyle(node), ink = parse(style.color).slice(0, 3);
    const [r, g, b, a = 1] = parse(style.backgroundColor);
    const under = [r, g, b].map((c, i) => c * a + ground[i] * (1 - a));
    const [x, y] = [luminance(ink), luminance(under)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  });
  return Math.min(...worst);
}"""


def test_text_is_readable_on_every_colour_in_both_themes(shown):
    """A contrast of at least 4.5 : 1, WCAG's level AA."""
    shown.keyboard.press("u")
    grounds = set()
    for _ in range(2):
        for key in "1234":
            shown.keyboard.press(key)
            shown.wait_for_selector("#text .t")
            assert shown.evaluate(CONTRAST) >= 4.5
        grounds.add(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
        shown.keyboard.press("d")
    assert len(grounds) == 2


def test_a_long_answer_is_coloured_as_it_comes_into_sight(tab, tmp_path):
    """6,000 tokens are in the page as text; only those near the window have spans."""
    write_run(tmp_path, iterations=1, long=6000)
    path = write_page(Options(tmp_path, out=tmp_path / "view.html"))
    tab.goto(path.as_uri())
    tab.wait_for_selector(".lane")
    tab.keyboard.press("u")
    tab.wait_for_selector("#text .t")
    assert "word5999" in tab.text_content("#text")
    assert 0 < tab.locator("#text .t").count() < 4000
    tab.eval_on_selector("#detail", "pane => pane.scrollTop = pane.scrollHeight")
    tab.wait_for_selector("#text .t:text(' word5999')")
    assert tab.locator(".lane >> nth=0 >> .cell").count() < 1000


def test_a_live_page_shows_new_trees_and_progress(tab, tmp_path):
    write_run(tmp_path, iterations=1)
    server = make_server(tmp_path, "127.0.0.1", 0, 10**6)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        tab.goto(f"http://127.0.0.1:{server.server_port}/")
        tab.wait_for_selector(".lane")
        assert tab.inner_text("#done") == "1 of 3 iterations · live"
        write_iteration(tmp_path, 1)
        tab.wait_for_selector("#done:text('2 of 3 iterations · live')", timeout=60_000)
        assert tab.inner_text("[aria-label=Iteration] option:checked") == "iteration 1"
        tab.keyboard.press("j")  # the reader chooses a task: it stays
        write_iteration(tmp_path, 2)
        tab.wait_for_selector("#newer", timeout=60_000)
        assert tab.inner_text("#newer") == "show iteration 2"
        assert tab.inner_text("h1") == HOSTILE
        tab.click("#newer")
        assert tab.inner_text("[aria-label=Iteration] option:checked") == "iteration 2"
        assert tab.locator("#newer").count() == 0
        tab.goto("about:blank")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_branch_that_repeats_its_parent_diverges_later(shown):
    """The token at 1 was sampled again; the first that differs is at 2."""
    branch = "{source: {tokens: ['a', 'b', 'c']}, tokens: ['a', 'b', 'd'], shared: 1}"
    assert shown.evaluate(f"findDivergence({branch})") == 2
    text = shown.evaluate(f"describeRepetition({{...{branch}, divergence: 2}})")
    assert text == "This branch repeats 1 of its parent\u2019s tokens and diverges at token 2."
