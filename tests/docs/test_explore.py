"""The explorable page: its arithmetic in Node, its settings, and the file that is built.

tests/browser has the page in a browser; `make docs-test` runs it.
"""

import itertools
import json
import math
import re
import runpy
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import gravity_core
from gravity_core import hyperparameters as hp
from gravity_core.velocity import initial_velocity, normal_quantiles
from tests.support.limits import HANG

ROOT = Path(__file__).resolve().parents[2]
EXPLORE = ROOT / "docs" / "explore"
PORT = ROOT / "gravity_conformance" / "vectors" / "examples" / "gravity.mjs"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="the page is in JavaScript and needs node")
U = 2.0**-53


def node(code, **given):
    """Run the code, which has the page's modules and `given`; return the value that it returns."""
    imports = "".join(
        f"import * as {name} from {json.dumps((EXPLORE / f'{name}.mjs').as_uri())};\n"
        for name in ("experiment", "figures", "optimizers", "surfaces")
    )
    program = (
        f"{imports}import {{ readFileSync }} from 'node:fs';\n"
        f"const given = JSON.parse(readFileSync(0, 'utf8'));\n"
        f"const result = (() => {{ {code} }})();\n"
        "process.stdout.write(JSON.stringify(result));\n"
    )
    done = subprocess.run(
        [NODE, "--input-type=module", "--eval", program],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=HANG,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


RUN = "return experiment.run({ ...experiment.defaults(given.surface), ...given.changes });"
SURFACES = re.findall(r"^  (\w+): \{$", (EXPLORE / "surfaces.mjs").read_text("utf-8"), re.MULTILINE)


def run_page(surface, **changes):
    return node(RUN, surface=surface, changes=changes)


# Gravity: the bits of gravity_core


@needs_node
def test_the_normal_numbers_have_the_bits_of_the_core():
    code = """
        const ks = Array.from({ length: 65536 }, (_, k) => (k + 0.5) / 65536);
        return ks.map((p) => Math.fround(optimizers.normalQuantile(p)));
    """
    assert np.asarray(node(code), np.float32).tobytes() == normal_quantiles().tobytes()


@needs_node
@pytest.mark.parametrize("surface", SURFACES)
def test_a_run_of_gravity_has_the_bits_of_the_core(surface):
    rate, alpha, beta, seed = 0.3, 0.05, 0.8, 5
    run = run_page(surface, rate=rate, alpha=alpha, beta=beta, seed=seed)["gravity"]
    w = np.asarray(run["points"][0])
    core = gravity_core.Gravity(rate, alpha, beta, seed=seed)
    v0 = initial_velocity((2,), np.float64, std=alpha / rate, seed=seed)
    assert run["trace"][0]["before"] == v0.tolist()
    steps = zip(run["trace"], [*run["points"][1:], None], strict=True)
    for n, (step, point) in enumerate(steps):
        g = np.asarray(step["g"])
        assert step["zeta"] == gravity_core.gradient_term(g).tolist(), n
        core.step([w], [g])
        assert step["v"] == core.velocity[0].tolist(), n
        assert point is None or point == w.tolist(), n


@needs_node
def test_with_a_fixed_m_only_the_gradient_term_changes():
    rate, beta, m = 0.1, 0.9, 0.7
    run = run_page("bowl", m=m)["gravity"]
    w = np.asarray(run["points"][0])
    v = initial_velocity((2,), np.float64, std=0.01 / rate)
    for n, step in enumerate(run["trace"][:-1], start=1):
        g = np.asarray(step["g"])
        old, new = gravity_core.coefficients(n, beta)
        assert step["zeta"] == (g / (1 + (g / m) * (g / m))).tolist()
        v = old * v + new * np.asarray(step["zeta"])
        w = w - rate * v
        assert (step["m"], step["beta_hat"]) == (m, old)
        assert run["points"][n] == w.tolist(), n


@needs_node
def test_the_defaults_are_those_of_every_framework():
    found = node("return experiment.defaults();")
    assert (found["rate"], found["alpha"], found["beta"]) == (hp.LEARNING_RATE, hp.ALPHA, hp.BETA)
    assert (found["seed"], found["m"]) == (hp.SEED, None)


# The other optimizers

GRADIENTS = np.random.default_rng(0).normal(size=(200, 2)) * [1.0, 100.0]
REPLAY = """
    const step = optimizers[given.name](given.rate);
    let w = [1, -2];
    return given.gradients.map((g) => (w = step(w, g)));
"""


def replayed(name, rate=0.01):
    return np.asarray(node(REPLAY, name=name, rate=rate, gradients=GRADIENTS.tolist()))


@needs_node
@pytest.mark.parametrize("mu", [0.0, 0.9], ids=["sgd", "momentum"])
def test_sgd_and_momentum_are_their_formulas(mu):
    w, v, want = np.asarray([1.0, -2.0]), np.zeros(2), []
    for g in GRADIENTS:
        v = mu * v + g
        w = w - 0.01 * v
        want.append(w)
    assert replayed("momentum" if mu else "sgd").tolist() == np.asarray(want).tolist()


@needs_node
def test_adam_is_that_of_torch():
    """Both are within the bound on rounding errors.

    M is a sum over about 1/(1 − β₁) terms with three roundings each; √S has half the roundings of
    S, a sum over about 1/(1 − β₂) terms. The sum of the sizes in M is at most (1 − β₁)/√(1 − β₂)
    times √S, by Cauchy and Schwarz, and so is a step, in units of the rate; a few more roundings
    make it.
    """
    torch = pytest.importorskip("torch")
    rate = 0.01
    w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=rate)
    want = []
    for g in GRADIENTS:
        w.grad = torch.from_numpy(g)
        optimizer.step()
        want.append(w.detach().numpy().copy())
    want = np.asarray(want)
    roundings = 3 / (1 - 0.9) + 3 / (1 - 0.999) / 2 + 16
    largest_step = rate * (1 - 0.9) / math.sqrt(1 - 0.999)
    one_step = (largest_step * roundings + 2 * np.abs(want).max()) * U
    error = np.abs(replayed("adam", rate) - want).max(axis=1)
    assert (error <= one_step * np.arange(1, len(want) + 1)).all()


@needs_node
def test_the_rates_follow_that_of_gravity_unless_given():
    code = "return ['sgd', 'momentum', 'adam'].map((name) => experiment.rateOf(given, name));"
    free = {"sgd": None, "momentum": None, "adam": None}
    assert node(code, rate=0.3, **free) == [0.3, 0.03, 0.03]
    assert node(code, rate=0.3, **free | {"adam": 2}) == [0.3, 0.03, 2]


@needs_node
def test_the_weights_of_a_diverged_run_stay_finite():
    code = RUN.replace("return ", "const results = ") + "return results.sgd;"
    run = node(code, surface="wall", changes={})
    assert run["end"] == len(run["points"]) < 10
    assert np.isfinite(run["points"]).all()


# The surfaces


@needs_node
@pytest.mark.parametrize("name", SURFACES)
def test_gradients_are_those_of_the_values(name):
    """A central difference D(h) is off by c h² + O(h⁴), and by rounding; D(h) − D(h/2) shows c."""
    h = 1e-3
    code = """
        const { value, gradient, view } = surfaces.surfaces[given.name];
        const points = [];
        for (let i = 0; i <= 12; i += 1) for (let j = 0; j <= 12; j += 1) {
          const x = view[0] + (view[1] - view[0]) * i / 12;
          const y = view[2] + (view[3] - view[2]) * j / 12;
          const along = (h) => [
            [value(x - h, y), value(x + h, y)],
            [value(x, y - h), value(x, y + h)],
          ];
          points.push([gradient(x, y), along(given.h), along(given.h / 2)]);
        }
        return points;
    """
    for gradient, wide, narrow in node(code, name=name, h=h):
        for g, (a, b), (c, d) in zip(gradient, wide, narrow, strict=True):
            wide_slope, narrow_slope = (b - a) / (2 * h), (d - c) / h
            rounding = 64 * U * max(map(abs, (a, b, c, d, 1.0))) / h
            curved = 2 * abs(wide_slope - narrow_slope)
            assert abs(narrow_slope - g) <= curved + rounding


@needs_node
@pytest.mark.parametrize("name", SURFACES)
def test_minima_are_minima_and_the_start_is_in_the_picture(name):
    code = """
        const { value, gradient, minima, view, start } = surfaces.surfaces[given.name];
        let least = Infinity;
        for (let i = 0; i <= 300; i += 1) for (let j = 0; j <= 300; j += 1) {
          const x = view[0] + (view[1] - view[0]) * i / 300;
          least = Math.min(least, value(x, view[2] + (view[3] - view[2]) * j / 300));
        }
        const at = minima.map((w) => [value(...w), ...gradient(...w)]);
        return { at, least, view, start };
    """
    found = node(code, name=name)
    for value, *gradient in found["at"]:
        assert value <= found["least"] + 1e-12
        assert max(map(abs, gradient)) < 1e-6
    left, right, bottom, top = found["view"]
    assert left < found["start"][0] < right
    assert bottom < found["start"][1] < top


# What the page says of its examples


class Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, name, value) for name, value in attrs if name in ("href", "src")]


PAGE = (EXPLORE / "index.html").read_text(encoding="utf-8")
TRY = [value for _, _, value in Links(PAGE).found if value.startswith("#")]


@pytest.fixture(scope="module")
def examples():
    """Return the settings and the results of each link of the page, by its text."""
    code = """
        return given.links.map((link) => {
          const { settings, problems } = experiment.parse(link);
          return [settings, problems, experiment.run(settings)];
        });
    """
    titles = re.findall(r'<li><a href="#[^"]*">([^<]*)</a>', PAGE)
    return dict(zip(titles, node(code, links=TRY), strict=True))


def heights(example):
    settings, _, results = example
    return {name: run["heights"][settings["n"]] for name, run in results.items()}


@needs_node
def test_the_links_of_the_page_are_right(examples):
    assert len(examples) >= 3
    assert [problems for _, problems, _ in examples.values()] == [[]] * len(examples)


@needs_node
def test_on_the_bowl_sgd_and_momentum_arrive_first(examples):
    end = heights(examples["Compare fairly."])
    assert max(end["sgd"], end["momentum"]) < end["gravity"] < end["adam"]


@needs_node
def test_at_a_high_rate_sgd_leaves_and_gravity_comes_home(examples):
    settings, _, results = examples["Raise the learning rate"]
    sizes = [math.hypot(*w) for w in results["sgd"]["points"]]
    assert all(b > a for a, b in itertools.pairwise(sizes))
    run = results["gravity"]["heights"]
    assert run[settings["n"]] < 1e-2 * run[0]


@needs_node
def test_on_the_wall_gravity_stays_and_comes_down_with_a_fixed_m(examples):
    settings, _, results = examples["Start high on a wall."]
    assert max(map(abs, results["sgd"]["points"][1])) > 2  # the picture ends there
    run = results["gravity"]["heights"]
    assert run[settings["n"]] > 0.8 * run[0]
    fixed = run_page("wall", m=1)["gravity"]["heights"]
    assert fixed[settings["n"]] < 0.01 * fixed[0]


@needs_node
def test_on_the_ridge_only_gravity_leaves(examples):
    settings, _, results = examples["Start on a ridge."]
    for name in ("sgd", "momentum", "adam"):
        assert {y for _, y in results[name]["points"]} == {0}
    assert results["gravity"]["heights"][settings["n"]] < 1e-3
    still = run_page("saddle", alpha=0)["gravity"]["points"]
    assert {y for _, y in still} == {0}


@needs_node
def test_a_scaled_loss_changes_what_the_page_says(examples):
    _, _, scaled = examples["Multiply the loss by 3."]
    plain = run_page("bowl")
    moved = {
        name: [
            abs(run[name]["points"][1][0] - run[name]["points"][0][0]) for run in (plain, scaled)
        ]
        for name in ("sgd", "adam")
    }
    assert moved["sgd"][1] == pytest.approx(3 * moved["sgd"][0])
    assert moved["adam"][1] == pytest.approx(moved["adam"][0])
    terms = [max(map(abs, run["gravity"]["trace"][0]["zeta"])) for run in (plain, scaled)]
    assert terms[1] < terms[0]


@needs_node
def test_on_the_usual_rosenbrock_function_gravity_stalls_and_sgd_diverges():
    run = run_page("rosenbrock", scale=100)
    assert run["sgd"]["end"] is not None
    assert run["gravity"]["heights"][-1] > 0.8 * run["gravity"]["heights"][0]


@needs_node
def test_the_step_grows_up_to_m_and_falls_beyond():
    terms = [
        run_page("bowl", x=x, y=0, m=1)["gravity"]["trace"][0]["zeta"][0] for x in (0.4, 0.5, 0.6)
    ]
    assert terms[0] < terms[1] > terms[2]


# The address

PARSE = "return given.hashes.map((hash) => experiment.parse(hash));"
BAD = {
    "#beta=7": "β, limit of β̂: 7 is not from 0 to 1. 1 is used.",
    "#rate=abc": "η, learning rate: “abc” is no number. 0.1 is used.",
    "#rate=": "η, learning rate: “” is no number. 0.1 is used.",
    "#rate=NaN": "η, learning rate: “NaN” is no number. 0.1 is used.",
    "#scale=Infinity": "c, scale of the loss: “Infinity” is no number. 1 is used.",
    "#x=-9": "start x: -9 is not from -2 to 2. -2 is used.",
    "#n=2.5": "step: 2.5 is not an integer from 0 to 1000. 3 is used.",
    "#m=auto": "m: “auto” is no number. gradient is used.",
    "#surface=lake": "surface: “lake” is unknown. “bowl” is used.",
    "#surface=toString": "surface: “toString” is unknown. “bowl” is used.",
    "#axes=polar": "axes: “polar” is unknown. “linear” is used.",
    "#off=lion": "off: “lion” is no optimizer of this page.",
    "#color=red": "“color” is no setting of this page.",
    "#__proto__=1": "“__proto__” is no setting of this page.",
}


@needs_node
def test_bad_values_in_the_address_are_replaced_and_reported():
    found = node(PARSE, hashes=list(BAD))
    assert [each["problems"] for each in found] == [[problem] for problem in BAD.values()]
    ranges = node("return experiment.ranges;")
    for each in found:
        for name, limits in ranges.items():
            value = each["settings"][name]
            assert value is None or limits["low"] <= value <= limits["high"]


@needs_node
def test_the_address_has_every_setting():
    changed = {
        "surface": "cliff",
        "x": 1.25,
        "y": -0.5,
        "rate": 0.02,
        "alpha": 0,
        "beta": 1,
        "m": 0.5,
        "scale": 10,
        "seed": 4294967295,
        "n": 7,
        "sgd": 0.5,
        "momentum": 1e-4,
        "adam": 0.3,
        "axes": "logarithmic",
        "theme": "dark",
        "off": ["sgd", "adam"],
    }
    default = node("return experiment.defaults();")
    assert changed.keys() == default.keys()
    assert not [name for name in changed if changed[name] == default[name]]
    for settings in (changed, default, changed | {"m": None, "off": []}):
        code = "return experiment.parse('#' + experiment.format(given));"
        assert node(code, **settings) == {"settings": settings, "problems": []}
    assert node("return experiment.format(given);", **default) == ""


# The figures

DRAWN = """
    const state = (changes) => {
      const settings = { ...experiment.defaults(changes.surface), ...changes };
      const surface = surfaces.surfaces[settings.surface];
      return { settings, surface, results: experiment.run(settings) };
    };
    return given.cases.map((changes) => {
      const drawn = state(changes);
      return [
        figures.surfaceFigure(drawn, 370),
        figures.slopesFigure(drawn, 150, 250),
        figures.curveFigure(drawn, 400, 250),
        figures.timesFigure(drawn, 500, 440),
        experiment.summary(drawn.settings, drawn.results),
      ];
    });
"""


@needs_node
def test_figures_and_words_have_numbers_whatever_the_settings():
    values = {
        "n": [0, 1, 1000],
        "axes": ["logarithmic", "linear"],
        "m": [None, 0.01, 100],
        "off": [[], ["gravity"], ["gravity", "sgd", "momentum", "adam"]],
    }
    cases = [
        {"surface": surface, "axes": axes, "n": n, **extreme}
        for surface, axes, n in itertools.product(SURFACES, values["axes"], values["n"])
        for extreme in (
            *({"m": m} for m in values["m"]),
            *({"off": off} for off in values["off"]),
            {"scale": 100, "rate": 10, "alpha": 1, "beta": 0},
            {"scale": 0.01, "rate": 0.001, "alpha": 1, "beta": 1},
            {"x": 0, "y": 0, "alpha": 0},
        )
    ]
    drawn = node(DRAWN, cases=cases)
    for case, parts in zip(cases, drawn, strict=True):
        for part in parts:
            assert not re.search(r"NaN|undefined|Infinity|null|\[object", part), (case, part)


@needs_node
def test_the_summary_is_in_words():
    (parts,) = node(DRAWN, cases=[{"surface": "wall", "n": 4, "off": ["adam"]}])
    assert parts[-1].startswith("Walls, 4 steps. Gravity is at x −1.5, y ")
    assert "The slope is 90° under x and 90° under y; x and y beyond 45°, where" in parts[-1]
    assert "SGD diverged in step " in parts[-1]
    assert "Adam" not in parts[-1]


@needs_node
def test_the_pixels_are_bands_whole_or_in_parts():
    code = """
        const colours = { low: [255, 255, 255], high: [0, 0, 0], contour: [255, 0, 0] };
        const [whole, parts] = [0, 0].map(() => new Uint8ClampedArray(4 * 60 * 60));
        figures.paint(whole, 60, surfaces.surfaces.bowl, colours);
        for (const [first, end] of [[0, 25], [25, 50], [50, 60]]) {
          figures.paint(parts, 60, surfaces.surfaces.bowl, colours, first, end);
        }
        return [Array.from(whole), Array.from(parts)];
    """
    whole, parts = node(code)
    assert whole == parts
    pixels = np.asarray(whole).reshape(60, 60, 4)
    assert (pixels[30, 30] == 255).all()  # the lowest band is in the middle
    assert pixels[:, :, 2].min() < 40  # the highest in the corners
    assert (pixels[:, :, 3] == 255).all()
    assert (np.flip(pixels, (0, 1)).mean((0, 1)) == pixels.mean((0, 1))).all()


# The file that is built


def build(out):
    command = [sys.executable, "-I", "-S", EXPLORE / "build.py", out]  # the standard library alone
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("explore") / "explore" / "index.html"
    done = build(out)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return out.read_text(encoding="utf-8")


def test_the_page_is_one_file_and_loads_nothing(built):
    links = Links(built).found
    assert {value for tag, _, value in links if tag != "a"} == {"data:,"}
    outside = {value for tag, _, value in links if tag == "a" and not value.startswith("#")}
    assert not outside
    code = re.sub(r"//.*|/\*.*?\*/", "", built, flags=re.DOTALL)
    assert not re.search(r"\bfetch\(|XMLHttpRequest|@import|\burl\(|https?:", code)


def test_the_page_of_the_site_links_the_course(built):
    page = runpy.run_path(str(EXPLORE / "build.py"))["page"](in_site=True)
    assert 'href="../course/index.html">The course</a>' in page
    assert "The course derives" in built
    assert (EXPLORE.parent / "course" / "index.md").is_file()


def test_the_page_has_the_port_as_it_is(built):
    port = re.sub(r"^export ", "", PORT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert built.count(port) == 1


def test_the_page_has_every_vector_that_the_port_can_run(built):
    text = re.search(r'<script id="vectors" type="application/json">(.*)</script>', built)[1]
    embedded = dict(json.loads(text))
    for path in sorted((PORT.parents[1]).glob("*.json")):
        groups = json.loads(path.read_text(encoding="utf-8")).get("groups", [])
        want = [
            (group["type"], test["id"])
            for group in groups
            for test in group["tests"]
            if "float16" not in group["dtype"]
        ]
        found = embedded[path.name]["groups"]
        assert [(group["type"], test["id"]) for group in found for test in group["tests"]] == want


@needs_node
def test_the_script_of_the_page_is_javascript(built, tmp_path):
    script = re.search(r'<script type="module">\n(.*)</script>', built, re.DOTALL)[1]
    (tmp_path / "page.mjs").write_text(script, encoding="utf-8")
    command = [NODE, "--check", tmp_path / "page.mjs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_same_sources_build_the_same_page(built, tmp_path):
    build(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == built


def test_a_missing_argument_is_named():
    done = subprocess.run(
        [sys.executable, EXPLORE / "build.py"], capture_output=True, text=True, timeout=HANG
    )
    assert (done.returncode, done.stderr) == (1, "usage: python docs/explore/build.py OUT.html\n")
