"""What `make docs` adds to the documents: formulas as MathML, the pages of the API, and documents of other folders.

Formulas are translated while the site is built, so that a reader needs neither a network nor a script. A command that the
translator does not know stops the build, with the formula.
"""

import ast
import html
import re
from pathlib import Path

import math_core
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "reference-moments.md": "reference/README.md",
}

# Page of the API → title, and the modules or packages that it shows.
REFERENCE = {
    "estimators": ("Estimators", ["fdfa_core/estimators/*.py"]),
    "networks": ("Networks", ["fdfa_core/networks/*.py"]),
    "parts": (
        "Laws, losses, measuring, testing, data",
        [
            "fdfa_core/perturbations.py",
            "fdfa_core/losses.py",
            "fdfa_core/gradients.py",
            "fdfa_core/measuring/*.py",
            "fdfa_core/testing/*.py",
            "fdfa_core/data/*.py",
            "fdfa_core/errors.py",
        ],
    ),
    "training": (
        "Experiments, runs, training",
        ["fdfa_core/experiments/*.py", "fdfa_core/runs/*.py", "fdfa_core/training/*.py", "fdfa_core/sweeps/*.py"],
    ),
    "analysis": ("analysis", ["analysis/*.py"]),
    "theory": ("analysis.theory", ["analysis/theory/*.py"]),
}


def on_files(files, config):
    """Add the pages that are not files of docs/."""
    for page, source in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](").replace("](../docs/", "](")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "reference/fdfa_core.md", content=_public("fdfa_core")))
    for page, (title, patterns) in REFERENCE.items():
        paths = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
        blocks = [f"::: {_dotted(path)}" for path in paths if _has_public_names(path)]
        files.append(File.generated(config, f"reference/{page}.md", content="\n\n".join([f"# {title}", *blocks])))
    return files


def on_page_markdown(markdown, page, config, files):
    """Part formulas that stand on lines of their own, one below another, as GitHub does."""
    return markdown.replace("$$\n$$", "$$\n\n$$")


def on_page_content(content, page, config, files):
    """Put MathML in the place of the formulas that arithmatex marked."""
    converter = math_core.LatexToMathML()

    def formula(match: re.Match) -> str:
        latex = html.unescape(match[2]).strip()
        display, latex = latex.startswith(r"\["), latex[2:-2].strip()
        numbered = rf"\begin{{equation}}{latex}\end{{equation}}" if r"\tag" in latex else latex
        try:
            return converter.convert_with_local_state(numbered, displaystyle=display)
        except math_core.LatexError as error:
            reason = re.sub(r"\x1b\[[\d;]*m", "", str(error))
            raise PluginError(f"{page.file.src_uri}: the formula {latex!r} cannot be shown: {reason}") from error

    content = re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', formula, content, flags=re.DOTALL)
    if not page.file.src_uri.startswith("reference/") and (left := re.search(r"\$\$|\$\\", _without_code(content))):
        near = content[max(0, left.start() - 40) : left.end() + 40]
        raise PluginError(f"{page.file.src_uri}: a formula was not recognised near {near!r}")
    return content


def _public(package: str) -> str:
    """Return the page of a package's public names, in the order of its stub."""
    tree = ast.parse((ROOT / package / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    # Links lead to the page of the module, where the same object stands among its like.
    blocks = [f"::: {package}.{alias.name}\n    options: {{skip_local_inventory: true}}" for i in imports for alias in i.names]
    return "\n\n".join([f"# {package}", f"What `from {package} import …` offers.", *blocks])


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _has_public_names(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return not path.stem.startswith("_") and any(not name.startswith("_") for name in defined)


def _without_code(content: str) -> str:
    """Blank code out, keeping all positions."""
    return re.sub(r"<code.*?</code>", lambda match: " " * len(match[0]), content, flags=re.DOTALL)
