"""The report page and the README's results, from a small partial record; in a browser where there is one."""

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

import recorded
from analysis import logs
from fdfa_core.errors import InvalidInput
from fdfa_core.experiments.loading import load_profile
from fdfa_core.networks.registry import architecture_options
from figures import plan, report
from figures.report import findings
from places import ROOT

SHOWN = ("accuracy", "convergence_cost", "depth_utility", "variance_vs_width")  # of the last there is no experiment
SHOWN += ("verdict_matrix", "verdict_summary")
TITLES = ["All data sets", "Digits", "MNIST"]  # of the tabs: two data sets, and what is about both
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
READ, COUNTED = logs.read, logs.coverage
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """All elements with their attributes; unclosed or crossed elements are errors."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.wrong = [], [], []
        self.feed(text)
        self.wrong += self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def with_role(self, role):
        return [attributes for _, attributes in self.elements if attributes.get("role") == role]

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(path of the report, what was skipped, experiments, runs)."""
    place = tmp_path_factory.mktemp("report")
    experiments, root = recorded.write(place)
    modules = {name: module for name, module in plan.discover().items() if name in SHOWN}
    skipped = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "discover", lambda: modules)
        path = report.write("tiny", root, place / "out", experiments=experiments, skip=skipped.__setitem__)
    return path, skipped, experiments, root


@pytest.fixture(scope="module")
def page(written):
    return Page(written[0].read_text(encoding="utf-8"))


def test_page_is_well_formed(page):
    assert page.wrong == [] and len(page.all("h1")) == 1 and page.all("html")[0]["lang"] == "en"


def test_page_needs_nothing_from_outside(page):
    links = [a[key] for _, a in page.elements for key in ("src", "href", "srcset", "action") if key in a]
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert not page.all("iframe") and all("src" not in script for script in page.all("script"))


def test_style_needs_nothing_from_outside(written):
    style = re.search(r"<style>(.*)</style>", written[0].read_text(), re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style


def test_links_within_the_page_lead_somewhere(page):
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} <= set(ids)


def test_every_figure_is_on_the_page_once(page):
    names = [a["alt"].split(":")[0] for a in page.all("img")]
    assert len(names) == 3 and all(a["src"].startswith("data:image/png;base64,") for a in page.all("img"))


def test_every_figure_and_table_is_one_section(page):
    sections = [a["id"] for a in page.all("section") if "id" in a and not a["id"].startswith("experiment-")]
    drawn = {"verdict_matrix", "verdict_summary", "accuracy", "depth_utility"}
    drawn |= {f"convergence_cost-{name}" for name in ("digits_fc", "mnist_fc")}
    assert len(sections) == len(set(sections)) and set(sections) == drawn
    assert sections[:2] == ["verdict_matrix", "verdict_summary"]  # the page opens with them


def test_tabs_and_panels_name_each_other(page):
    tabs, panels = page.with_role("tab"), page.with_role("tabpanel")
    assert [a["aria-controls"] for a in tabs] == [a["id"] for a in panels] and len(panels) == len(TITLES)
    assert [a["aria-labelledby"] for a in panels] == [a["id"] for a in tabs]
    assert [a["aria-selected"] for a in tabs] == ["true", "false", "false"] and len(page.with_role("tablist")) == 1


def test_all_panels_are_shown_without_a_script(page):
    """The script hides panels and shows the tabs; print shows all panels again."""
    assert not any("hidden" in a for a in page.with_role("tabpanel")) and "hidden" in page.with_role("tablist")[0]


def test_panels_are_printed_whole(written):
    text = written[0].read_text(encoding="utf-8")
    rules = re.search(r"@media print \{\n(.*?)\n\}", text, re.DOTALL)[1]
    assert re.search(r'\[role="tabpanel"\]\[hidden\] \{ display: block; content-visibility: visible; \}', rules)


def test_a_data_set_has_its_own_panel(written):
    text = written[0].read_text(encoding="utf-8")
    panels = re.split(r'<div class="panel"', text)[1:]
    assert [re.search("<h3>(.*?)</h3>", panel)[1] for panel in panels] == TITLES
    held = [set(re.findall(r'<section class="item" id="(.*?)"', panel.split("<h2")[0])) for panel in panels]
    assert held == [{"accuracy", "depth_utility"}, {"convergence_cost-digits_fc"}, {"convergence_cost-mnist_fc"}]


def test_matrix_has_a_word_and_a_symbol_in_every_cell_and_a_heading_per_row(written, page):
    text = written[0].read_text(encoding="utf-8")
    matrix = text[text.index('id="verdict_matrix"') : text.index("</section>", text.index('id="verdict_matrix"'))]
    cells = re.findall(r'<td data-question="[^"]+">(.*?)</td>', matrix)
    assert len(cells) == 12 and all(re.search(r'class="\w+ \w+">(✓ |✗ |≈ |\? |○ \d of 3 seeds)', cell) for cell in cells)
    assert len([a for a in page.all("th") if a.get("scope") == "row"]) == 3
    assert "○ 2 of 3 seeds" in matrix and "○ 0 of 3 seeds" in matrix  # DFA on MNIST, and all of Fashion-MNIST


def test_size_of_a_picture_is_stated(page, written):
    from PIL import Image

    with Image.open(written[0].parent / "depth_utility.png") as image:
        assert any((a["width"], a["height"]) == (str(image.width), str(image.height)) for a in page.all("img"))


def test_table_holds_what_its_markdown_holds(written):
    text = written[0].read_text()
    lines = (written[0].parent / "accuracy.md").read_text().splitlines()
    cells = [cell.strip() for line in lines if line.startswith("| ") for cell in line.strip("|").split("|")]
    assert len(cells) > 20 and all(f">{html.escape(cell)}<" in text for cell in cells)


def test_partial_record_is_said_on_the_page(written):
    text = " ".join(written[0].read_text().split())
    assert re.search(r"\b2 cores", text)  # a count stays whole beside runs that are missing
    assert "23 of 36 planned runs" in text and "DFA 2 of 3" in text and "No run yet of fashion_fc" in text


def test_figures_that_were_skipped_are_named_with_the_reason(written):
    path, skipped, *_ = written
    assert set(skipped) == {"convergence_cost-fashion_fc", "variance_vs_width"}
    assert "fdfa sweep" in skipped["convergence_cost-fashion_fc"]
    assert all(reason in html.unescape(path.read_text()) for reason in skipped.values())


def test_provenance_of_the_runs_is_shown_and_escaped(written):
    text = written[0].read_text()
    assert recorded.COMMIT[:12] in text and "a &lt;processor&gt; &amp; more" in text and "<processor>" not in text


def test_every_item_says_how_it_was_made(page, written):
    text = written[0].read_text()
    assert all(f"fdfa figures --profile tiny --only {name}" in text for name in ("accuracy", "convergence_cost-digits_fc"))
    assert {a["download"] for a in page.all("a") if "download" in a} >= {"accuracy.csv", "depth_utility.csv"}


def test_equal_records_give_equal_pages(written, monkeypatch):
    path, _, experiments, root = written
    before = path.read_bytes()
    modules = {name: module for name, module in plan.discover().items() if name in SHOWN}
    monkeypatch.setattr(plan, "discover", lambda: modules)
    report.write("tiny", root, path.parent, experiments=experiments, skip=lambda *_: None)
    assert path.read_bytes() == before


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_page_fits_the_screen_and_shows_its_pictures(written, tmp_path, width):
    """Measured inside a frame of that width: a headless window cannot be made as narrow as a phone."""
    script = """
    const frame = document.querySelector("iframe");
    const measure = () => {
      const page = frame.contentDocument, images = [...page.images];
      const loaded = images.filter(image => image.complete && image.naturalWidth > 0).length;
      document.title = `${page.documentElement.scrollWidth} ${images.length} ${loaded}`;
    };
    if (frame.contentDocument && frame.contentDocument.readyState === "complete") measure();
    frame.addEventListener("load", measure);
    """
    text = html.escape(written[0].read_text(encoding="utf-8"))
    frame = f'<iframe srcdoc="{text}" style="width: {width}px; height: 2000px; border: 0"></iframe>'
    (tmp_path / "frame.html").write_text(f"<!DOCTYPE html><title></title>{frame}<script>{script}</script>")
    shown = dumped(tmp_path, tmp_path / "frame.html", f"--screenshot={tmp_path / 'screen.png'}", "--window-size=1400,2100")
    used, images, loaded = map(int, re.search(r"<title>(\d+) (\d+) (\d+)</title>", shown).groups())
    assert used <= width and images == loaded == 3


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_keys_move_between_tabs_and_a_link_opens_its_panel(written, tmp_path):
    """Left from the first tab to the last, right around again, Home, End; then a link into a panel that is hidden."""
    script = """
    const tabs = [...document.querySelectorAll('[role="tab"]')], seen = [];
    const note = () => seen.push(tabs.map(tab => {
      const shown = !document.getElementById(tab.getAttribute("aria-controls")).hidden;
      const whole = shown === (tab.getAttribute("aria-selected") === "true") && shown === (tab.tabIndex === 0);
      return whole ? Number(shown) : "?";
    }).join("") + tabs.indexOf(document.activeElement));
    note();
    tabs[0].focus();
    for (const key of ["ArrowLeft", "ArrowRight", "ArrowRight", "Home", "End", "Tab"]) {
      document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      note();
    }
    tabs[0].click();
    location.hash = "#convergence_cost-digits_fc";
    addEventListener("hashchange", () => { note(); document.title = seen.join(" "); });
    """
    text = written[0].read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>")
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    title = re.search("<title>(.*?)</title>", dumped(tmp_path, tmp_path / "page.html"))[1]
    assert title.split() == ["100-1", "0012", "1000", "0101", "1000", "0012", "0012", "010-1"]


def dumped(place, page, *more):
    """Return the elements of a page after its scripts have run."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=10000"]
    options += ["--disable-quic", "--no-first-run", "--disable-background-networking", f"--user-data-dir={place / 'profile'}"]
    command = [BROWSER, *options, *more, "--dump-dom", str(page)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


# --- results in the README -------------------------------------------------------------------------------------------


def test_results_state_accuracy_seeds_and_what_is_missing(written):
    _, _, experiments, root = written
    text = report.results("tiny", root, experiments)
    assert "23 of 36 planned runs" in text and re.search(r"\| DFA +\|.* \(2\) +\|", text)
    assert re.search(r"\| FDFA α=0.1 +\|.* ± .* \(3\)", text)
    assert "mnist_fc" in text.splitlines()[-1] and "digits_fc" not in text.splitlines()[-1]


def test_results_hold_the_matrix_and_a_paragraph_per_question(written):
    _, _, experiments, root = written
    text = report.results("tiny", root, experiments)
    assert re.search(r"^\| MNIST, fully connected<br>`mnist_fc` .*○ 2 of 3 seeds", text, re.MULTILINE)
    questions = re.findall(r"^\*\*(Q\d: .*?)\.\*\* Does FDFA", text, re.MULTILINE)
    assert questions == ["Q2: faster per epoch", "Q2: faster per operation", "Q3: more accurate", "Q3: level with BP"]


def test_every_experiment_is_read_once_and_counted_once(written, monkeypatch):
    _, _, experiments, root = written
    read, counted = [], []
    monkeypatch.setattr(logs, "read", lambda store, e, **k: read.append(e.name) or READ(store, e, **k))
    monkeypatch.setattr(logs, "coverage", lambda store, e: counted.append(e.name) or COUNTED(store, e))
    report.results("tiny", root, experiments)
    assert sorted(read) == ["digits_fc", "mnist_fc"] and sorted(counted) == ["digits_fc", "fashion_fc", "mnist_fc"]


def test_results_of_an_empty_record_say_so(written, tmp_path):
    assert report.results("tiny", tmp_path, written[2]).startswith("0 of 36 planned runs are recorded")


def test_only_the_marked_region_is_rewritten(written):
    _, _, experiments, root = written
    begin, end = report.BEGIN.format("results"), report.END.format("results")
    text = report.with_results(f"before\n{begin}\nWHAT STOOD THERE\n{end}\nafter\n", "tiny", root, experiments)
    assert text.startswith(f"before\n{begin}\n23 of 36") and text.endswith(f"{end}\nafter\n")
    assert "WHAT STOOD THERE" not in text


def test_a_text_without_the_region_is_an_error(written):
    with pytest.raises(InvalidInput, match="end of results"):
        report.with_results("no marks", "tiny", written[3], written[2])


@pytest.mark.parametrize("page", ["README.md", "docs/reproducing.md"])
def test_documents_hold_what_is_recorded(page):
    """`make readme` brings them up to date."""
    text = (ROOT / page).read_text(encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert report.with_results(text, "paper", Path("results/paper")) == text


def test_findings_are_those_of_the_runs_that_are_there(written):
    _, _, experiments, root = written
    text = findings.findings("tiny", root, experiments)
    titles = re.findall("(?m)^### (.+)$", text)
    assert "Accuracy beside FDFA" in titles and "Depth" not in titles
    assert "Accuracy beside published ones" not in titles  # those are of convolutions, of which there is no run


def test_growth_is_named_by_its_interval_alone():
    """0.95 may be as the width or not: the interval says it."""
    slopes = {"fg-w": (1.2, 1.5), "fg-a": (0.9, 1.1), "fdfa": (0.2, 0.7), "dkp": (-0.1, 0.4)}
    rows = [
        {"estimator": name, "block": 0, "width": width, "estimate": 2.0, "low": 1.0, "high": 3.0, "interval": "seeds"}
        | {"slope": 0.95, "slope_low": low, "slope_high": high}
        for name, (low, high) in slopes.items()
        for width in (10, 100)
    ]
    said = findings._growth(pd.DataFrame(rows)).set_index("estimator")["grows"].to_dict()
    assert said == {"FG-W": "faster", "FG-A": "in proportion", "FDFA": "more slowly", "DKP": "no growth shown"}


def test_no_word_stands_where_there_is_no_interval():
    row = {"trained_with": "bp", "estimator": "fg-a", "block": 0, "estimate": 3.0, "low": 3.0, "high": 3.0, "interval": "none"}
    parts = pd.DataFrame([row | {"quantity": quantity, "detected": True} for quantity in ("mse", "variance", "bias2")])
    assert findings._errors(parts)["a zero estimate is"].tolist() == ["–"]
    width = pd.DataFrame([row | {"width": 10, "slope": 2.0, "slope_low": 2.0, "slope_high": 2.0}])
    assert findings._growth(width)["grows"].tolist() == ["–"]


def test_an_error_is_held_against_that_of_a_zero_estimate():
    bounds = {"fg-a": (2.0, 3.0), "fdfa": (0.1, 0.4), "dfa": (0.9, 1.2)}
    rows = [
        {"trained_with": "bp", "estimator": name, "block": 0, "quantity": quantity, "interval": "seeds"}
        | {"estimate": 1.0, "low": low, "high": high, "detected": quantity != "bias2"}
        for name, (low, high) in bounds.items()
        for quantity in ("mse", "variance", "bias2")
    ]
    table = findings._errors(pd.DataFrame(rows)).set_index("estimator")
    said = table["a zero estimate is"].to_dict()
    assert said == {"FG-A": "closer", "FDFA": "farther", "DFA": "not told apart"}
    assert table.loc["FDFA", "squared bias"] == "at most 0.400" and table.loc["FDFA", "variance"] == "1.00 [0.100, 0.400]"


def test_what_is_learnt_and_lost_again_is_named_where_the_intervals_are_apart():
    accuracies = {  # after epochs 1 to 3, each ± 1 point
        "bp": (0.90, 0.93, 0.95),  # goes on to learn
        "dfa": (0.90, 0.93, 0.92),  # the intervals touch each other
        "pepita": (0.92, 0.80, 0.10),
    }
    about = {"experiment": "mnist_fc", "quantity": "test_accuracy", "kind": "mean", "interval": "seeds"}
    rows = [
        about | {"trained_with": name, "epoch": float(epoch), "estimate": mean, "low": mean - 0.01, "high": mean + 0.01}
        for name, means in accuracies.items()
        for epoch, mean in enumerate(means, 1)
    ]
    table = findings._unlearnt(pd.DataFrame(rows))
    assert table["estimator"].tolist() == ["PEPITA"]
    assert table["highest (%)"].item() == "epoch 1: 92.0 [91.0, 93.0]"
    assert table["last (%)"].item() == "epoch 3: 10.0 [9.0, 11.0]"
    assert findings._unlearnt(pd.DataFrame(rows[:6])).empty  # then the heading is left out, too
    assert findings._unlearnt(pd.DataFrame(rows).assign(interval="none")).empty  # a single seed has none


def test_the_network_beside_published_ones_is_the_one_that_was_trained():
    """Logs name the architecture alone: the table says the rest, which must hold of every run that it may show."""
    networks = [run.network for experiment in load_profile("paper").values() for run in experiment.runs()]
    options = [network.options for network in networks if network.architecture == "convolutional"]
    assert options and all(of == {"variant": "cnn-released"} for of in options)
    net = architecture_options("convolutional") | options[0]
    parts = [*(f"{n}C{net['kernel_size']}" for n in net["channels"]), "P2", *map(str, net["hidden"]), "10"]
    assert findings.NETWORK == "-".join(parts)


@pytest.mark.parametrize(
    ("p", "said"), [(0.049, "**−2.00 [−3.00, −1.00]**, p = 0.049"), (0.051, "−2.00 [−3.00, −1.00], p = 0.051")]
)
def test_a_difference_is_bold_where_two_methods_are_told_apart(p, said):
    about = {"dataset": "mnist", "architecture": "fully_connected", "optimizer": "sgd", "epochs": 3, "interval": "seeds"}
    rows = [
        about | {"trained_with": "dfa", "difference": -0.02, "difference_low": -0.03, "difference_high": -0.01, "p_holm": p},
        about | {"trained_with": "fdfa", "difference": 0.0, "difference_low": 0.0, "difference_high": 0.0, "p_holm": 1.0},
    ]
    table = findings._accuracies(pd.DataFrame(rows).assign(accuracy=0.9, low=0.8, high=1.0)).set_index("estimator")
    assert table.to_dict() == {"MNIST, fully connected, SGD, 3 epochs": {"DFA": said}}
