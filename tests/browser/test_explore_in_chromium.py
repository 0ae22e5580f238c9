"""The explorable page in headless Chromium. `make docs-test` runs this; `make test` does not."""

import contextlib
import io
import re
import shutil
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
sync_api = pytest.importorskip("playwright.sync_api", reason="`make docs-test` installs playwright")
if CHROMIUM is None:
    pytest.skip("no chromium on PATH", allow_module_level=True)

WIDTHS = (1280, 400)
THEMES = ("light", "dark")
SECONDS = 1000
LONG = 120 * SECONDS  # until something that must appear is missed


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Return the address of the page, which is built into a folder of its own."""
    sys.path.insert(0, str(ROOT / "docs" / "explore"))
    try:
        import build
    finally:
        sys.path.pop(0)
    out = tmp_path_factory.mktemp("explore") / "explore.html"
    out.write_text(build.page(), encoding="utf-8")
    return out.as_uri()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # A container's root has no sandbox; the page is ours.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, address):
    """Return a function that opens the page; any error, or request of the network, is a failure."""
    faults = []
    with contextlib.ExitStack() as stack:

        def open_page(hash="", width=1280, theme="light", **options):
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=theme, **options
            )
            stack.callback(context.close)
            context.set_default_timeout(LONG)
            page = context.new_page()
            page.on("console", lambda message: faults.append(message.text))
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on(
                "request",
                lambda request: (
                    faults.append(request.url)
                    if not request.url.startswith(("file:", "data:"))
                    else None
                ),
            )
            page.goto(address + hash)
            return page

        yield open_page
    assert faults == []


def expect_settings(page, **expected):
    """Wait until the address, which follows the controls, has these settings and no others."""
    page.wait_for_function(
        """expected => {
            const found = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
            const names = Object.keys({ ...found, ...expected });
            return names.every((name) => found[name] === expected[name]);
        }""",
        arg=expected,
    )


def expect_start(page, x, y):
    sync_api.expect(page.locator("#x")).to_have_value(x, timeout=LONG)
    sync_api.expect(page.locator("#y")).to_have_value(y, timeout=LONG)


def set_range(page, selector, value):
    page.locator(selector).evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", value
    )


# The arithmetic


def test_all_vectors_are_right_in_this_browser(opened):
    page = opened()
    page.click("#check")
    compared, wrong = re.fullmatch(
        r"(\d+) results compared, (\d+) wrong\.", page.inner_text("#checked")
    ).groups()
    expected = page.evaluate(
        """() => JSON.parse(document.getElementById("vectors").textContent)
               .flatMap(([, { groups }]) => groups).flatMap(({ tests }) => tests).length"""
    )
    assert int(wrong) == 0
    assert int(compared) > expected > 0  # at least one result for each test


def test_a_wrong_result_is_counted(opened):
    page = opened()
    page.evaluate(
        """() => {
            const element = document.getElementById("vectors");
            const files = JSON.parse(element.textContent);
            const group = files.find(([name]) => name === "one_step.json")[1].groups[0];
            group.tests[0].steps[0].expected.tensors[0].V.decimal[0] += 1;
            element.textContent = JSON.stringify(files);
        }"""
    )
    page.click("#check")
    assert page.inner_text("#checked").endswith(" results compared, 1 wrong.")


# What is drawn


def pixels_of(page, selector):
    # The surface is painted in parts.
    page.wait_for_function(
        """() => document.getElementById("bands").dataset.painted?.endsWith(
            document.documentElement.dataset.theme)"""
    )
    png = page.locator(selector).screenshot(animations="disabled")
    return matplotlib.image.imread(io.BytesIO(png))[:, :, :3]


def colour(page, name):
    text = page.evaluate(
        "name => getComputedStyle(document.documentElement).getPropertyValue(name)", f"--{name}"
    )
    return np.asarray([int(text.strip()[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def share(pixels, rgb):
    """Return the share of the pixels that have this colour."""
    return float((np.abs(pixels - rgb).max(axis=2) < 0.02).mean())


def middle(pixels):
    y, x = (n // 2 for n in pixels.shape[:2])
    return pixels[y - 10 : y + 10, x - 10 : x + 10]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_everything_is_drawn(opened, width, theme):
    page = opened("#n=60", width, theme)
    # The lines are judged, not their labels, nor the ball and the dots on them.
    page.add_style_tag(content="#paths :is(text, .head, .dots), #times text { display: none }")
    surface, curve, times = (pixels_of(page, each) for each in ("#stage", "#curve", "#times"))
    for name in ("gravity", "sgd", "momentum", "adam"):
        assert share(surface, colour(page, name)) > 2e-4, name
        assert share(times, colour(page, name)) > 2e-4, name
    assert share(curve, colour(page, "gravity")) > 1e-3
    assert share(curve, colour(page, "sgd")) > 1e-4
    low, high = (np.median(each, axis=(0, 1)) for each in (middle(surface), surface[2:22, -22:-2]))
    assert np.abs(high - low).max() > 0.15  # bands from the middle to the corners
    assert (colour(page, "page").mean() < 0.5) == (theme == "dark")
    assert share(curve, colour(page, "page")) > 0.3
    assert share(pixels_of(page, "#slopes"), colour(page, "gravity")) > 1e-3


@pytest.mark.parametrize("width", [*WIDTHS, 320])
def test_nothing_is_wider_than_the_screen(opened, width):
    page = opened(width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        """() => [...document.querySelectorAll("body *:not(svg *)")]
            .filter((each) => each.getBoundingClientRect().right > innerWidth + 0.5)
            .map((each) => each.id || each.tagName)"""
    )
    assert wide == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "hash", ["#n=0", "#n=60", "#surface=wall&n=300", "#n=1000&axes=logarithmic"]
)
def test_labels_stay_in_their_figures_and_apart(opened, width, hash):
    page = opened(hash, width)
    outside, crossed = page.evaluate(
        """() => {
            const [outside, crossed] = [[], []];
            for (const svg of document.querySelectorAll("#paths, #slopes, #curve, #times")) {
                const frame = svg.getBoundingClientRect();
                const boxes = [...svg.querySelectorAll("text")]
                    .map((text) => [text, text.getBoundingClientRect()]);
                for (const [text, box] of boxes) {
                    if (box.left < frame.left - 1 || box.right > frame.right + 1
                        || box.top < frame.top - 3 || box.bottom > frame.bottom + 3) {
                        outside.push(`${svg.id}: ${text.textContent}`);
                    }
                }
                const names = boxes.filter(([text]) => text.matches(".name"));
                names.forEach(([text, a], i) => names.slice(i + 1).forEach(([other, b]) => {
                    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
                    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
                    if (high > 4 && wide > 0) crossed.push([text.textContent, other.textContent]);
                }));
            }
            return [outside, crossed];
        }"""
    )
    assert outside == []
    assert crossed == []


def test_the_theme_follows_the_system_and_the_button(opened):
    page = opened(theme="dark")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    page.emulate_media(color_scheme="light")
    page.wait_for_selector("html[data-theme=light]")
    light = pixels_of(page, "#stage").mean()
    page.click("#theme")
    page.wait_for_selector("html[data-theme=dark]")
    assert pixels_of(page, "#stage").mean() < light - 0.3
    expect_settings(page, theme="dark")


def test_text_has_the_contrast_that_wcag_asks_for(opened):
    def luminance(rgb):
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for theme in THEMES:
        page = opened(theme=theme)
        for ink in ("ink", "muted", "accent", "gravity", "sgd", "momentum", "adam"):
            for ground in ("page", "panel"):
                a, b = sorted(luminance(colour(page, each)) for each in (ink, ground))
                assert (b + 0.05) / (a + 0.05) >= 4.5, (theme, ink, ground)


# The controls


def test_play_pause_step_and_reset(opened):
    page = opened("#n=0")
    page.click("#step")
    assert page.inner_text("#n-shown") == "1"
    page.click("#play")
    assert page.inner_text("#play") == "Pause"
    page.wait_for_function("Number(document.getElementById('n-shown').textContent) > 4")
    page.click("#play")
    assert page.inner_text("#play") == "Play"
    paused = page.inner_text("#n-shown")
    page.wait_for_timeout(200)
    assert page.inner_text("#n-shown") == paused
    expect_settings(page, n=paused)
    page.click("#reset")
    assert page.inner_text("#n-shown") == "0"


def test_the_run_ends_at_the_last_step_and_starts_again(opened):
    page = opened("#n=998")
    page.select_option("#speed", "150")
    page.click("#play")
    page.wait_for_function("document.getElementById('play').textContent === 'Play'")
    assert page.inner_text("#n-shown") == "1000"
    page.click("#step")
    assert page.inner_text("#n-shown") == "1000"
    page.click("#play")
    page.wait_for_function("Number(document.getElementById('n-shown').textContent) < 1000")


def test_with_reduced_motion_play_is_a_jump(opened):
    page = opened("#n=0", reduced_motion="reduce")
    page.click("#play")
    assert (page.inner_text("#n-shown"), page.inner_text("#play")) == ("50", "Play")


def test_the_mouse_moves_the_start(opened):
    page = opened()
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.25, steps=3)
    page.mouse.up()
    expect_start(page, "1", "1")
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.click("#step")
    expect_start(page, "1", "1")
    ring = page.locator("#start").bounding_box()  # held at its edge, it does not jump
    page.mouse.move(ring["x"] + 5, ring["y"] + 22)
    page.mouse.down()
    page.mouse.up()
    page.click("#step")
    expect_start(page, "1", "1")
    page.mouse.move(ring["x"] + 5, ring["y"] + 22)
    page.mouse.down()
    page.mouse.move(ring["x"] + 5 + box["width"] / 8, ring["y"] + 22)
    page.mouse.up()
    expect_start(page, "1.5", "1")


def test_a_finger_taps_the_start_or_drags_it(opened):
    page = opened(width=400, has_touch=True)
    box = page.locator("#stage").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.75)
    expect_start(page, "1", "-1")
    assert page.locator("#start").bounding_box()["width"] >= 44

    touch = page.context.new_cdp_session(page)

    def swipe(x, y, dx, dy):
        points = [(x + dx * part, y + dy * part) for part in (0, 0.3, 0.6, 1)]
        for kind, (px, py) in zip(["touchStart", *["touchMove"] * 3], points, strict=True):
            at = [{"x": px, "y": py}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    quarter = box["width"] / 4
    ring = (box["x"] + 3 * quarter, box["y"] + 3 * quarter)
    swipe(*ring, -quarter, -quarter)
    expect_start(page, "0", "0")
    swipe(box["x"] + quarter, box["y"] + 3 * quarter, 0, -150)  # scrolls
    page.wait_for_function("scrollY > 50")
    expect_start(page, "0", "0")


def test_the_keyboard_reaches_everything_and_shows_where_it_is(opened):
    page = opened("#m=1")
    wanted = page.evaluate(
        """() => [...document.querySelectorAll("a, button, input, select, [tabindex]")]
            .filter((each) => !each.disabled).map((each, i) => (each.dataset.order = i))"""
    )
    reached = []
    for _ in wanted:
        page.keyboard.press("Tab")
        order, style = page.evaluate(
            """() => {
                const active = document.activeElement;
                return [active.dataset.order, getComputedStyle(active).outlineStyle];
            }"""
        )
        reached.append(int(order))
        assert style != "none", order
    assert reached == wanted


def test_arrow_keys_move_the_start(opened):
    page = opened()
    page.focus("#start")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    expect_start(page, "-1.18", "0.7")
    assert page.locator("#start").get_attribute("aria-valuetext") == "x −1.18, y 0.7"
    for _ in range(10):
        page.keyboard.press("Shift+ArrowLeft")
    expect_start(page, "-2", "0.7")  # the edge


def test_every_control_has_a_name_for_screen_readers(opened):
    page = opened()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, [role=slider], [role=img]")]
            .filter((each) => !(each.getAttribute("aria-label") || each.textContent.trim()
                || [...(each.labels ?? [])].some((label) => label.textContent.trim())))
            .map((each) => each.outerHTML)"""
    )
    assert nameless == []
    described = page.locator("svg[role=img]").evaluate_all(
        "all => all.map((each) => each.getAttribute('aria-describedby'))"
    )
    assert described == ["summary"] * 4


def test_a_screen_reader_hears_what_a_change_did(opened):
    page = opened("#n=0&off=adam")
    page.click("#step")
    live = page.locator("#summary")
    sync_api.expect(live).to_contain_text("Bowl, 1 step.", timeout=LONG)
    assert live.get_attribute("role") == "status"
    for words in ("Gravity is at x", "The slope is", "SGD is at", "Momentum is at"):
        assert words in live.text_content()
    assert "Adam" not in live.text_content()


# The address


def test_an_address_gives_the_same_page_again(opened):
    page = opened()
    page.select_option("#surface", "cliff")
    for name, value in {"rate": "0.2", "beta": "0.5", "scale": "2", "adam": "0.3"}.items():
        page.fill(f"#{name}", value)
        page.press(f"#{name}", "Enter")
    page.uncheck("#m-from-gradient")
    page.uncheck("#on-momentum")
    page.check("#axes")
    page.get_by_role("button", name="Another V₀").click()
    set_range(page, "#n", 70)
    found = {
        "surface": "cliff",
        "rate": "0.2",
        "beta": "0.5",
        "scale": "2",
        "adam": "0.3",
        "m": "1",
        "off": "momentum",
        "axes": "logarithmic",
        "seed": "1",
        "n": "70",
    }
    expect_settings(page, **found)
    again = opened(page.evaluate("location.hash"))
    expect_settings(again, **found)
    for figure in ("paths", "slopes", "curve", "times"):
        assert again.inner_html(f"#{figure}") == page.inner_html(f"#{figure}")
    assert again.input_value("#adam") == "0.3"
    assert not again.is_checked("#on-momentum")


def test_links_of_the_page_load_their_settings(opened):
    page = opened()
    page.get_by_role("link", name="Start on a ridge.").click()
    page.wait_for_function("document.getElementById('surface').value === 'saddle'")
    assert page.inner_text("#n-shown") == "120"


def test_the_link_is_copied(opened):
    page = opened("#n=12", permissions=["clipboard-read", "clipboard-write"])
    page.click("#copy")
    page.wait_for_function("document.getElementById('copied').textContent !== ''")
    assert page.evaluate("location.hash") == "#n=12"


def test_bad_addresses_and_numbers_are_reported_and_replaced(opened):
    page = opened("#rate=abc&surface=lake&beta=7&lr=1")
    problems = page.inner_text("#problems").splitlines()
    assert problems == [
        "surface: “lake” is unknown. “bowl” is used.",
        "η, learning rate: “abc” is no number. 0.1 is used.",
        "β, limit of β̂: 7 is not from 0 to 1. 1 is used.",
        "“lr” is no setting of this page.",
    ]
    assert (page.input_value("#rate"), page.input_value("#beta")) == ("0.1", "1")
    page.fill("#rate", "-3")
    page.press("#rate", "Enter")
    assert page.inner_text("#problems").startswith("η, learning rate: -3 is not from")
    assert page.input_value("#rate") == "0.001"
    page.fill("#rate", "0.5")
    page.press("#rate", "Enter")
    assert page.inner_text("#problems") == ""
    assert "NaN" not in page.inner_text("body")


def test_the_page_says_what_it_needs_without_javascript(opened):
    page = opened(java_script_enabled=False)
    assert "needs JavaScript" in page.inner_text("body")


def test_every_optimizer_may_be_off(opened):
    page = opened()
    for name in ("gravity", "sgd", "momentum", "adam"):
        page.uncheck(f"#on-{name}")
    assert page.text_content("#curve") == "Gravity is switched off"
    assert page.locator("#paths .trail").count() == 0
    expect_settings(page, off="gravity,sgd,momentum,adam")


def test_what_is_being_typed_stays_when_the_page_is_drawn_again(opened):
    page = opened()
    page.fill("#rate", "0.03")
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector("html[data-theme=dark]")
    assert page.input_value("#rate") == "0.03"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_picture_stays_in_sight_while_the_settings_scroll(opened, width):
    page = opened(width=width)
    page.mouse.move(width / 2, 880)
    page.mouse.wheel(0, 700 if width > 1000 else 1100)
    page.wait_for_function("scrollY > 500")
    assert page.locator("#stage").bounding_box()["y"] >= -1
    for name in ("rate", "scale", "adam"):
        page.locator(f"#{name}").focus()
        box, picture = (page.locator(each).bounding_box() for each in (f"#{name}", "#stage"))
        beside = box["x"] > picture["x"] + picture["width"]
        assert beside or box["y"] >= picture["y"] + picture["height"], name
