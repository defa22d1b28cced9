"""What the site adds to the documents; `make docs` itself is strict about links, navigation and formulas."""

import importlib.util
import types

import pytest

from places import ROOT

pytest.importorskip("mkdocs", reason="`make docs` installs what the site needs")
pytest.importorskip("math_core", reason="`make docs` installs what the site needs")


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "_site" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(hooks, content, name="theory.md"):
    return hooks.on_page_content(content, types.SimpleNamespace(file=types.SimpleNamespace(src_uri=name)), None, None)


def test_a_formula_becomes_mathml_with_its_number(hooks):
    inline = shown(hooks, r'<p><span class="arithmatex">\(\alpha &lt; 1\)</span></p>')
    assert inline.startswith("<p><math>") and "α" in inline and "arithmatex" not in inline
    assert "(3)" in shown(hooks, r'<div class="arithmatex">\[x = 1 \tag{3}\]</div>')


def test_a_formula_that_cannot_be_shown_stops_the_build_and_is_named(hooks):
    with pytest.raises(Exception, match=r"theory.md: the formula .*nosuch.* cannot be shown"):
        shown(hooks, r'<span class="arithmatex">\(\nosuch{a}\)</span>')


def test_a_formula_that_was_not_recognised_stops_the_build(hooks):
    with pytest.raises(Exception, match="not recognised"):
        shown(hooks, r"<p>text $\alpha text</p>")
    assert shown(hooks, r"<p><code>$\alpha</code></p>") == r"<p><code>$\alpha</code></p>"


def test_reference_lists_every_public_name_of_the_package(hooks):
    import fdfa_core

    page = hooks._public("fdfa_core")
    assert all(f"::: fdfa_core.{name}\n" in page + "\n" for name in fdfa_core.__all__)


def test_every_page_of_the_reference_finds_modules(hooks):
    for title, patterns in hooks.REFERENCE.values():
        for pattern in patterns:
            assert list(ROOT.glob(pattern)), f"{title}: {pattern}"
