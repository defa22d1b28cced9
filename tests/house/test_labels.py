"""Nobody reads an estimator's options out of a label or out of JSON text: logs have them as columns (`analysis.options`)."""

import ast
from pathlib import Path

import pytest

from imports import MODULES
from places import ROOT

READERS = {"contains", "startswith", "endswith", "match", "fullmatch", "search", "extract", "findall", "split", "partition"}
MEANT = ("options", "label", "labels", "estimator", "trained_with")  # names of what holds labels, or options as text
OWNER = Path("analysis/options.py")  # reads the JSON, for all


def holds(node: ast.AST) -> bool:
    """Whether an expression mentions labels or options: by a variable, an attribute, or the name of a column."""
    modules = {id(part.value) for part in ast.walk(node) if isinstance(part, ast.Attribute) and part.attr.isupper()}
    for part in ast.walk(node):
        if id(part) in modules:  # `options.PREFIX`
            continue
        name = {ast.Name: "id", ast.Attribute: "attr", ast.Constant: "value"}.get(type(part))
        if name and getattr(part, name) in MEANT:
            return True
    return False


def violations(source: str) -> list[str]:
    """Return the expressions that look for text in a label or in options, or that parse options."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of_text = node.func.attr in READERS and (holds(node.func.value) or any(map(holds, node.args)))
            of_json = node.func.attr == "loads" and any(map(holds, node.args))
            found += [ast.unparse(node)] if of_text or of_json else []
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            (right,) = node.comparators[:1]
            looked_for = isinstance(node.left, ast.Constant) and isinstance(node.left.value, str)
            found += [ast.unparse(node)] if looked_for and isinstance(right, ast.Name | ast.Attribute) and holds(right) else []
    return found


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] in ("analysis", "figures") and m != OWNER], ids=str)
def test_options_are_asked_for_by_column(module):
    assert violations((ROOT / module).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        'rows["options"].str.contains("warmup")',
        '~frame["estimator"].str.contains("tangents|site")',
        'json.loads(row["options"]).get("joint")',
        'rows["options"].map(lambda options: json.loads(options))',
        're.fullmatch("(.*)", label)',
        '"warmup" in label',
        '"site" not in row.estimator',
        'label.partition("(")[2]',
    ],
)
def test_each_way_of_reading_text_is_found(source):
    assert violations(source)


@pytest.mark.parametrize("source", ['"estimator" in frame', "label in labels", 'json.loads(run.config)["training"]'])
def test_what_reads_no_label_is_let_pass(source):
    assert violations(source) == []


FIGURES = [m for m in MODULES if m.parts[0] == "figures" and "\ndef compute(" in (ROOT / m).read_text(encoding="utf-8")]


@pytest.mark.parametrize("module", FIGURES, ids=str)
def test_every_figure_says_what_its_labels_stand_for(module):
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    decorators = {f.name: {ast.unparse(d) for d in f.decorator_list} for f in tree.body if isinstance(f, ast.FunctionDef)}
    assert decorators["compute"] == {"_labels.labelled"}
    assert decorators.get("draw", {"style.styled"}) == {"style.styled"}
    assert decorators.get("show", {"_labels.understood"}) == {"_labels.understood"}
