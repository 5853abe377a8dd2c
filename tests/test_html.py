"""The HTML report in a real browser: on a phone and on a wide screen, light and dark, by mouse and by keyboard."""

import dataclasses
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
import torch
from flax import nnx
from pairs.bottlenecks import pair as resnet_with_mistakes

import compare
from compare.alignment.pairings import NotCompared
from compare.report.findings import Run, settings
from compare.report.report import Report
from compare.verdict.divergence import Cause, Detail, DetailKind, Divergence
from compare.verdict.ratio import Quantity

EVIL = "<!--<script>document.title = 'broken'</script>"
SCREENS = [(width, theme) for width in (400, 1600) for theme in ("light", "dark")]


def synthetic(tensors: int = 12, steps: int = 20, wrong_from: int | None = 7, name: str = "port") -> Report:
    """A run whose fourth tensor is wrong from a step on, and everything after it with it."""
    rng = np.random.default_rng(0)
    stages = ["forward"] * (tensors // 3) + ["loss"] + ["gradient"] * (tensors // 3)
    stages += ["parameters"] * (tensors - len(stages))
    quantities = []
    for number, stage in enumerate(stages):
        error64, error32 = 1e-16 * rng.uniform(0.5, 2, steps), 1e-7 * rng.uniform(0.5, 2, steps)
        if wrong_from is not None and number >= 3:
            error64[wrong_from:] = 1e-4
        module = "" if stage == "loss" else f"layers.{number}"
        kind = {"forward": " output", "loss": "loss"}.get(stage, ".weight")
        jax_module, jax_kind = module.replace(".", "/"), kind.replace(".weight", "/kernel")
        subject = (module, jax_module) if stage == "forward" else (f"{module}{kind}", f"{jax_module}{jax_kind}")
        quantities.append(
            Quantity(
                stage,
                f"{module}{kind}",
                f"{jax_module}{jax_kind}",
                stage != "forward",
                list(error64),
                list(error32),
                list(error32),
                [1.0] * steps,
                subjects=((subject[0],), (subject[1],)),
            )
        )
    divergence = None
    if wrong_from is not None:
        cause = Cause(
            "epsilon", "torch has eps=1e-05", "nnx.LayerNorm(..., epsilon=1e-05)", "https://flax.readthedocs.io"
        )
        details = [
            Detail(DetailKind.LAYER, "LayerNorm(eps=1e-05)", "torch"),
            Detail(DetailKind.LAYER, "LayerNorm(epsilon=1e-06)", "jax"),
        ]
        place = (wrong_from, "forward", "layers.3", "layers/3")
        divergence = Divergence(*place, 1e-4, 1e-7, 2e-16, cause, details=tuple(details))
    losses = np.exp(-np.arange(steps) / 100) + 0.01 * rng.random(steps)
    runs = [Run(side, losses.astype(np.float32), losses) for side in ("torch", "flax")]
    paths = [f"layers.{number}" for number in range(tensors)]
    return Report(
        name,
        runs[0],
        runs[1],
        quantities,
        divergence,
        [],
        settings(steps, "cpu"),
        modules=(
            {"": "Model"} | dict.fromkeys(paths, "LayerNorm"),
            {"": "Port"} | {path.replace(".", "/"): "LayerNorm" for path in paths},
        ),
        weights=[(f"{path}.weight", f"{path.replace('.', '/')}/kernel") for path in paths],
    )


def hostile() -> Report:
    """Everything that a user names is an attack, and longer than a phone is wide."""
    report = synthetic(name=EVIL)
    assert report.divergence is not None
    assert report.divergence.cause is not None
    for quantity in report.quantities:
        quantity.torch, quantity.jax = f"{EVIL}{quantity.torch}", f"{'long_' * 40}{EVIL}"
    cause = dataclasses.replace(report.divergence.cause, explanation=EVIL, fix=EVIL)
    return dataclasses.replace(
        report,
        torch=dataclasses.replace(report.torch, side="<b>torch"),
        divergence=dataclasses.replace(report.divergence, torch=EVIL, opinion=EVIL, cause=cause),
        others=[dataclasses.replace(report.divergence, jax=EVIL)],
        settings={"seed": EVIL, "versions": {EVIL: EVIL}},
        not_compared=[NotCompared(EVIL, EVIL, EVIL)] * 5,
        nondeterministic=[EVIL],
        pinned=[EVIL],
        modules=({EVIL: EVIL, "$x^2$": "long" * 40}, {EVIL: EVIL}),
        weights=[(f"{EVIL}.weight", f"{EVIL}/kernel")],
    )


def precise() -> Report:
    note = Cause("float32 bias correction", "the first update is 6.7e-06 off", "none is needed")
    return dataclasses.replace(synthetic(wrong_from=None), notes=[note])


def one_step() -> Report:
    return synthetic(steps=1, wrong_from=0)


def uneven() -> Report:
    """A side that rounds a thousand times more from the second tensor on."""
    report = synthetic(wrong_from=None)
    for quantity in report.quantities[1:]:
        quantity.error_jax = [1e-3] * len(quantity.error_jax)
    return report


@pytest.fixture(scope="module")
def resnet() -> Report:
    torch.manual_seed(0)
    return compare.check(*resnet_with_mistakes(), steps=2, device="cpu", quick=True)


@pytest.fixture(scope="module")
def checked() -> Report:
    """A real pair, whose port has another epsilon."""

    class Port(nnx.Module):
        def __init__(self) -> None:
            self.fc, self.norm = nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.LayerNorm(4, epsilon=1e-3, rngs=nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            return self.norm(self.fc(x))

    class Original(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)

        def forward(self, x: torch.Tensor) -> Any:
            return self.norm(self.fc(x))

    rng = np.random.default_rng(0)
    return compare.check(
        compare.Torch(Original(), torch.nn.functional.mse_loss, lambda params: torch.optim.SGD(params, 1e-2)),
        compare.Flax(Port(), lambda output, target: ((output - target) ** 2).mean(), optax.sgd(1e-2)),
        [tuple(rng.standard_normal((5, size), dtype=np.float32) for size in (3, 4))],
        steps=3,
        device="cpu",
    )


class Browser:
    """Pages opened in headless Chromium."""

    def __init__(self, folder: Path, driver: Any) -> None:
        self.folder, self.driver = folder, driver

    def open(self, page: str | Report, width: int = 1600, theme: str = "light") -> None:
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        preference = {"name": "prefers-color-scheme", "value": theme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [preference]})
        file = self.folder / "report.html"
        file.write_text(page if isinstance(page, str) else page.to_html(), encoding="utf-8")
        self.complaints()  # of the page before
        self.driver.get(file.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def figure(self, name: str) -> str:
        return str(self.run(f"return document.querySelector('[data-figure={name}]').textContent"))

    def press(self, *keys: str) -> None:
        self.run("document.getElementById('map').focus()")
        self.driver.switch_to.active_element.send_keys(*keys)

    def complaints(self) -> list[Any]:
        return list(self.driver.get_log("browser"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("no Chromium and chromedriver here: `apt-get install chromium chromium-driver` on Debian")
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium here: `pip install selenium`")
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"):
            options.add_argument(f"--{flag}")
        for flag in ("disable-component-update", "disable-sync", "disable-quic", f"user-data-dir={folder}/profile"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        # Selenium neither looks for a browser nor reports its use.
        service = Service(chromedriver, env={"SE_OFFLINE": "true", "SE_AVOID_STATS": "true"})
        driver = webdriver.Chrome(options, service)
        yield Browser(Path(folder), driver)
        driver.quit()


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<(style|script|svg).*?</\1>", " ", page)))


@pytest.mark.slow
def test_three_mistakes_in_a_resnet_fit_a_screen(resnet: Report) -> None:
    summary = "3 things to mend: Conv2d padding (2 layers), BatchNorm2d momentum (13 layers), weight decay"
    assert resnet.to_mend == summary, str(resnet)
    assert len(str(resnet).splitlines()) <= 40, str(resnet)
    padding, momentum, decay = resnet.groups
    # The line that makes the convolutions with the wrong padding makes others too, which are right.
    assert padding.patch is None
    assert momentum.patch
    assert decay.patch


@pytest.mark.slow
def test_the_page_of_three_mistakes_in_a_resnet_is_short(browser: Browser, resnet: Report) -> None:
    browser.open(resnet)
    assert browser.run("return document.documentElement.scrollHeight") < 3000
    assert browser.complaints() == []
    browser.run("document.getElementById('filter').value = 'layer2'; document.getElementById('differing').click()")
    assert browser.figure("torch").startswith("layer2")
    hidden = "return [...document.querySelectorAll('#map .stage')].filter((stage) => stage.hidden).length"
    assert browser.run(hidden) == 1  # the loss
    browser.open(resnet, 400)
    assert browser.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_what_matters_comes_first() -> None:
    page = synthetic().to_html()
    body = page[page.index("<body>") :]
    text = text_of(body)
    order = ["✗ mismatch", "First divergence", "step 7, forward", "layers.3", "Cause", "torch has eps", "Fix", "Losses"]
    places = [text.index(each) for each in order]
    assert places == sorted(places)
    assert body.index("Fix") < body.index("<svg")
    assert "<dt>flax</dt><dd><code>layers/3</code><br>" in page
    for version in ("torch", "jax", "flax", "optax", "numpy", "float32 matmul precision"):
        assert f'<td data-of="setting">{version}</td>' in page


def test_each_verdict_says_what_it_means() -> None:
    assert "✓ match The same program" in text_of(synthetic(wrong_from=None).to_html())
    text = text_of(precise().to_html())
    assert "≈ precision The same mathematics" in text
    assert text.index("float32 bias correction") < text.index("6.7e-06") < text.index("Losses")


def test_nothing_is_fetched() -> None:
    page = synthetic().to_html()
    assert not re.findall(r"""(?:src|url\(|@import)\s*=?\s*["']?https?:""", page)
    assert "default-src 'none'" in page


def test_the_same_report_gives_the_same_page() -> None:
    assert synthetic().to_html() == synthetic().to_html()


def test_a_forward_pass_alone_has_no_losses() -> None:
    report = synthetic(wrong_from=None)
    quantities = [quantity for quantity in report.quantities if quantity.stage == "forward"]
    empty = Run("torch", np.empty(0), np.empty(0))
    alone = dataclasses.replace(report, torch=empty, jax=empty, quantities=quantities)
    page = alone.to_html()
    assert "<h2>Losses" not in page
    assert "Digits of agreement" in page
    with pytest.raises(compare.InputError, match="port: no losses to plot"):
        alone.plot()


@pytest.mark.parametrize("stage", ["shown", "state"])
def test_the_stages_of_a_program_are_on_the_page(stage: str) -> None:
    report = synthetic()
    report.quantities[-1].stage = stage
    assert f'<td data-of="stage">{stage}</td>' in report.to_html()


def test_plot_is_a_figure() -> None:
    figure = synthetic().plot()
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "relative difference"]


@pytest.mark.parametrize(("width", "theme"), SCREENS)
@pytest.mark.parametrize("make", [synthetic, hostile, precise, one_step, uneven])
def test_it_fits_and_can_be_read(browser: Browser, make: Any, width: int, theme: str) -> None:
    browser.open(make(), width, theme)
    assert browser.complaints() == []
    assert browser.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    outside = """
        return [...document.querySelectorAll("main *")].filter((element) => {
            const { left, right, width } = element.getBoundingClientRect();
            return width > 1 && (left < 0 || right > document.documentElement.clientWidth + 1);
        }).map((element) => element.outerHTML.slice(0, 200))
    """
    assert browser.run(outside) == []
    assert browser.run(_FAINT) == []
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)" if theme == "light" else "rgb(20, 23, 26)"
    )


_FAINT = """
    const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = (colour) => rgb(colour).slice(0, 3).map((value) => value / 255)
        .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
        .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
    const behind = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return rgb(colour)[3] === 0 && element.parentElement ? behind(element.parentElement) : colour;
    };
    return [...document.querySelectorAll("main *")].filter((element) => {
        const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        if (!text || !element.getClientRects().length) return false;
        const style = getComputedStyle(element), inDrawing = element instanceof SVGElement;
        const pair = [light(inDrawing ? style.fill : style.color), light(behind(element))].sort((a, b) => a - b);
        return (pair[1] + 0.05) / (pair[0] + 0.05) < 4.5;
    }).map((element) => element.outerHTML.slice(0, 200));
"""
"""Texts that contrast too little with what is behind them."""


def test_names_are_text_and_nothing_else(browser: Browser) -> None:
    browser.open(hostile())
    assert browser.complaints() == []
    assert "broken" not in browser.run("return document.title").replace(EVIL, "")
    assert browser.run("return document.querySelectorAll('main script').length") == 0
    assert browser.run("return document.querySelector('h1').textContent") == EVIL
    assert browser.figure("torch").startswith(EVIL)


def test_the_map_answers_the_keyboard(browser: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(synthetic())
    assert browser.figure("place") == "step 7, forward"
    assert browser.figure("torch") == "layers.3 output"
    assert browser.figure("verdict").startswith("✗ differs: ")
    assert browser.figure("digits") == "4.0"
    assert browser.figure("error64") == "1.0e-04"
    browser.press(Keys.ARROW_LEFT)
    assert browser.figure("place") == "step 6, forward"
    assert browser.figure("verdict").startswith("✓ agrees")
    browser.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert (browser.figure("place"), browser.figure("torch")) == ("step 7, loss", "loss")
    browser.press(Keys.PAGE_DOWN, Keys.END)
    assert (browser.figure("place"), browser.figure("torch")) == ("step 19, gradient", "layers.5.weight")
    browser.press(Keys.HOME, Keys.ARROW_LEFT, Keys.ARROW_UP, Keys.ARROW_UP)
    assert (browser.figure("place"), browser.figure("jax")) == ("step 0, forward", "layers/3 output")
    browser.press(*[Keys.ARROW_UP] * 5)
    assert browser.figure("torch") == "layers.0 output"
    browser.run("document.getElementById('first').click()")
    assert browser.figure("place") == "step 7, forward"


@pytest.mark.parametrize("width", [400, 1600])
def test_the_map_answers_a_click(browser: Browser, width: int) -> None:
    browser.open(synthetic(), width)
    click = """
        const canvas = document.querySelectorAll("#map canvas")[2], box = canvas.getBoundingClientRect();
        const [x, y] = [box.left + box.width * 0.525, box.top + box.height * 0.375];
        canvas.dispatchEvent(new MouseEvent("click", { clientX: x, clientY: y, bubbles: true }));
    """
    browser.run(click)
    assert (browser.figure("place"), browser.figure("torch")) == ("step 10, gradient", "layers.6.weight")


def test_the_map_shows_where_it_begins(browser: Browser) -> None:
    browser.open(synthetic())
    apart = """
        const middle = (box) => [box.left + box.width / 2, box.top + box.height / 2];
        const [x, y] = middle(document.querySelector(".mark.origin").getBoundingClientRect());
        const box = document.querySelector("#map canvas").getBoundingClientRect();
        return [Math.abs(x - box.left - box.width * 7.5 / 20), Math.abs(y - box.top - box.height * 3.5 / 4)];
    """
    assert max(browser.run(apart)) < 1.5
    assert browser.run("return document.querySelector('.mark.flag').textContent") == "first divergence"
    colour = (
        "const c = document.querySelector('#map canvas').getContext('2d'); return [...c.getImageData(%d, 3, 1, 1).data]"
    )
    right, wrong = browser.run(colour % 6), browser.run(colour % 7)
    assert right[2] > right[0]
    assert wrong[0] > wrong[2]


def test_the_trees_stand_side_by_side(browser: Browser, checked: Report) -> None:
    page = checked.to_html()
    text = text_of(page)
    assert text.index("torch Original") < text.index("flax Port")
    assert re.search(r"norm LayerNorm first divergence \S+ ✗", text)
    assert re.search(r"fc Linear \S+ ✓", text)
    browser.open(page)
    assert browser.complaints() == []
    assert browser.run("return document.querySelectorAll('.trees path.match').length") == 4
    browser.run("for (const folded of document.querySelectorAll('.trees details')) folded.open = false")
    time.sleep(0.2)  # of its folding a browser tells a little later
    assert browser.run("return document.querySelectorAll('.trees path').length") == 2


def test_a_long_run_is_small_and_opens_at_once(browser: Browser) -> None:
    page = synthetic(tensors=100, steps=1000, wrong_from=400).to_html()
    assert len(page.encode()) < 1e6
    browser.open(page)
    assert browser.complaints() == []
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    assert browser.run("return performance.getEntriesByType('navigation')[0].loadEventEnd") < 2000
    assert browser.figure("place") == "step 400, forward"


def test_a_precision_is_marked_where_it_begins(browser: Browser) -> None:
    report = uneven()
    assert report.verdict == "precision"
    browser.open(report)
    assert browser.figure("torch") == "layers.1 output"
    assert browser.run("return document.querySelector('.mark.flag').textContent") == "first uneven rounding"
    assert browser.run("return document.querySelector('.here').parentElement.textContent").startswith("layers.1 ")


def test_a_single_step_has_bars(browser: Browser) -> None:
    page = one_step().to_html()
    assert "At the only step: torch" in page
    browser.open(page)
    colour = (
        "const c = document.querySelector('#map canvas').getContext('2d'); return [...c.getImageData(%d, 3, 1, 1).data]"
    )
    begun, behind = browser.run(colour % 2), browser.run(colour % 60)  # of the fourth tensor, four digits agree
    assert begun[0] > begun[2]
    assert behind[:3] == [245, 246, 244]


def test_a_notebook_shows_it(browser: Browser) -> None:
    browser.open(f"<!doctype html><body>{hostile()._repr_html_()}</body>")
    inside = "return document.querySelector('iframe').contentDocument.querySelector"
    assert browser.run(f"{inside}('h1').textContent") == EVIL
    assert browser.run(f"{inside}('[data-figure=place]').textContent") == "step 7, forward"
    assert browser.complaints() == []


def test_markdown_has_what_matters_first_and_the_rest_folded() -> None:
    text = synthetic().to_markdown()
    order = ["mismatch", "layers.3", "torch has eps=1e-05", "fix", "nnx.LayerNorm", "<details>", "| parameters | 3 |"]
    places = [text.index(each) for each in order]
    assert places == sorted(places)
    assert text.count("|---|---|---|---|---|") == 1
    assert "✅" in synthetic(wrong_from=None).to_markdown()
    outside_code = re.sub(r"`[^`]*`", "", hostile().to_markdown())
    assert not re.search(r"(?<!\\)<script", outside_code)
    assert hostile().to_markdown().count("not compared on the") == 1


def test_without_a_size_of_rounding_none_is_named() -> None:
    report = synthetic()
    assert report.divergence is not None
    infinite = dataclasses.replace(report.divergence, error64=np.inf, expected64=np.inf)
    lost = dataclasses.replace(report, divergence=infinite)
    assert "the difference is infinite\n" in str(lost)
    assert "Rounding would be about" not in lost.to_html()
    assert "Rounding would be about" in report.to_html()
