"""Render figures and tables: discover the modules, compute, draw, write, and do again only what changed.

A figure is a module of this package with `EXPERIMENTS`, `compute(logs) -> DataFrame` and `draw(frame) -> Figure`; a table has
``TABLE = True`` and, in place of `draw`, `show(frame) -> DataFrame` of texts for reading, whose lines are kept apart; it may
have `explain(frame)`, the titles and paragraphs that stand below it. Nothing is registered anywhere.

`EXPERIMENTS` are roles: an experiment's file name, or the `role` that its file states. Where a profile has several experiments
of a role, the module is rendered once for each, as ``<module>-<experiment>``, or, with ``POOLED = True``, once for all of them
together. Roles in `OPTIONAL` are those that `compute` can do without. A figure of cost names a recorded
benchmark as `BENCH`, which `compute` gets in place of logs, and has no experiments. With ``PLANNED = True`` `compute` gets all
experiments of the profile as a second argument. `PROFILES` are those that a module is for,
if not all. `OWN` are the roles that a module asks of a user's own runs (`analysis.own`); one without it does not show them.
"""

from __future__ import annotations

import gc
import html
import io
import json
import os
import re
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import joblib
import pandas as pd
from fontTools import subset
from matplotlib.figure import Figure

from analysis import benches, own
from analysis import logs as log_frames
from analysis.rebuilt import cache
from fdfa_core.errors import FdfaError, InvalidInput, RunError, UnknownName
from fdfa_core.files import make_directory, write_atomically
from fdfa_core.workers import worker_processes
from figures import _verdicts, layout, style
from figures.plan import Coverage, Job, discover, gaps, plan

MARKER = ".fdfa-figures"
PREVIEWS = ("variance_vs_width", "alignment_angles", "convergence")
PREVIEW_DPI = 110
LEAST = 4  # figures for a process of its own: it takes as long to start as one or two take to draw
_PACKAGES = ("matplotlib", "numpy", "pandas", "scipy", "statsmodels", "tabulate", "jinja2")


def render(
    profile: str,
    root: str | Path,
    out: str | Path,
    only: Iterable[str] | None = None,
    *,
    experiments: str | Path = log_frames.EXPERIMENTS,
    report: Callable[[str, bool], None] | None = None,
    skip: Callable[[str, str], None] | None = None,
    coverage: Coverage | None = None,
    processes: int | None = 1,
) -> list[Path]:
    """Write ``<name>.{png,pdf,csv}`` for every figure and ``<name>.{csv,md,tex,html}`` for every table.

    A figure is drawn again only if its module, the modules of `analysis` and `figures` that it imports, the libraries'
    versions or the logs it needs changed, or a file of it is missing or altered. Equal logs give equal files, byte for byte.

    Args:
        profile: folder of `experiments` whose runs are shown; "own" for a user's own runs in `root`.
        root: directory of runs, or record.
        out: directory to write to: new, empty, or one that this function wrote before.
        only: names of figures and tables (of modules, or of what they render); None for all.
        experiments: directory of experiment files.
        report: called with name and whether it was drawn (False: up to date), after each.
        skip: show what the runs that are there allow (a figure says how many are missing), and call this with name and reason
            for what they do not. Without it a missing run is an error; a benchmark that is not recorded, or an experiment that
            the profile does not have, is one where `only` asks for its figure, and otherwise leaves it out (`figures.plan.plan`
            says which).
        coverage: of `root`, where it is counted already.
        processes: that draw side by side; None for one a core. There is one where there is little to draw.

    Returns:
        All files of the figures asked for, drawn now or up to date.

    Raises:
        UnknownName: no such figure or profile.
        RunError: an experiment or run is missing, a log cannot be read, or `out` cannot be used.
        InvalidInput: fewer than one process.
    """
    if processes is not None and processes < 1:
        raise InvalidInput("processes", processes, "a positive integer, or None for one a core")
    store = log_frames.open_store(root)
    coverage = coverage or Coverage(store)
    planned, missing = plan(profile, store, only, experiments=experiments, partial=skip is not None, coverage=coverage)
    for name, reason in missing.items() if skip else ():
        skip(name, reason)
    if skip is not None and not planned:
        reason = next(iter(missing.values()), "there are no figures")
        raise RunError(f"{store.root}: holds nothing that the figures asked for could show; {reason}")
    out = open_directory(Path(out))
    painter = _Painter(store, out, profile, partial=skip is not None)
    tasks = [(job, note, painter.stamp(job, note)) for job in planned for note in [gaps(job, coverage)]]
    waiting = [task for task in tasks if not _is_current(out, task[0], task[2])]
    if report:
        for name in sorted({task[0].name for task in tasks} - {task[0].name for task in waiting}):
            report(name, False)
    lost = set()
    for name, reason in _drawn(painter, waiting, processes):
        if reason is not None:
            lost.add(name)
            skip(name, reason)
        elif report:
            report(name, True)
    return [path for job in planned if job.name not in lost for path in _files(out, job)]


class _Painter:
    """Draws jobs from a store into a directory; what it read once it keeps."""

    def __init__(self, store: log_frames.Store, out: Path, profile: str, partial: bool):
        self._store, self._out, self._profile, self._partial = store, out, profile, partial
        self._logs: dict[Path, log_frames.Logs] = {}
        self._fingerprints: dict[Path, str] = {}

    def stamp(self, job: Job, note: str) -> str:
        """Return a hash of all that the files of a job depend on."""
        inputs = [f"{role}/{self._fingerprint(e)}" for role, group in job.experiments.items() for e in group]
        inputs += [_hash_files([benches.path(job.bench)])] if job.bench else []
        inputs += [f"{experiment.path}/{run.id}" for experiment in job.planned for run in experiment.runs()]
        return cache.digest(_sources(job.module), note, *inputs)

    def draw(self, job: Job, note: str, stamp: str) -> str | None:
        """Write the files of a job, or return why the runs that are there do not allow it."""
        logs_of = {role: log_frames.pooled([self._read(e) for e in group]) for role, group in job.experiments.items()}
        logs_of |= {job.bench: benches.read(job.bench)} if job.bench else {}
        try:
            with _cycles_at_the_end():
                contents = _contents(job, computed(job, logs_of), note)
        except FdfaError as error:
            if not self._partial or not (note or self._profile == own.PROFILE):
                raise
            return f"the runs that are there do not allow it: {error}"
        _write(self._out, job, stamp, contents)
        return None

    def _read(self, experiment: log_frames.loading.Experiment) -> log_frames.Logs:
        if experiment.path not in self._logs:
            self._logs[experiment.path] = log_frames.read(self._store, experiment, partial=self._partial)
        return self._logs[experiment.path]

    def _fingerprint(self, experiment: log_frames.loading.Experiment) -> str:
        if experiment.path not in self._fingerprints:
            self._fingerprints[experiment.path] = log_frames.fingerprint(self._store, experiment)
        return self._fingerprints[experiment.path]


def _drawn(painter: _Painter, tasks: list[tuple[Job, str, str]], processes: int | None) -> Iterator[tuple[str, str | None]]:
    """Draw jobs, with their notes and stamps; yield each one's name in turn, and the reason where it cannot be drawn."""
    processes = min(processes or joblib.cpu_count(), len(tasks) // LEAST)
    if processes < 2:
        for task in tasks:
            yield task[0].name, painter.draw(*task)
        return
    key, known = uuid.uuid4().hex, set()
    # Those of most runs first: they take longest, and nobody shall wait for one that began last.
    tasks = sorted(tasks, key=lambda task: -sum(len(e.runs()) for e in task[0].all_experiments))
    with worker_processes():
        parallel = joblib.Parallel(n_jobs=processes, return_as="generator", batch_size=1)
        results = parallel(joblib.delayed(_draw_for)(key, painter, *task) for task in tasks)
        for (job, _, _), (reason, caught) in zip(tasks, results, strict=True):
            for warning in caught:
                if warning[:2] not in known:  # from another figure
                    warnings.warn_explicit(*warning)
                known.add(warning[:2])
            yield job.name, reason


@contextmanager
def _cycles_at_the_end() -> Iterator[None]:
    """Let Python look for cycles once, at the end, among what was made since: looking in between takes a fifth of the time.

    A picture is many objects that hold each other, beside the many more of the libraries, through which every search goes.
    """
    if not gc.isenabled() or gc.get_freeze_count():  # as somebody else wants it
        yield
        return
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()
        gc.enable()


_PAINTERS: dict[str, _Painter] = {}  # of this worker process, so that it reads each experiment once


def _draw_for(key: str, painter: _Painter, *task) -> tuple[str | None, list[tuple]]:
    """Draw a job in a worker process, and return the reason where that cannot be, and what it warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        reason = _PAINTERS.setdefault(key, painter).draw(*task)
    return reason, [(str(w.message), w.category, w.filename, w.lineno) for w in caught]


def computed(job: Job, logs_of: dict) -> pd.DataFrame:
    """Return what a figure or table shows of some logs; a module with `PLANNED` is told what its profile plans, too."""
    return job.module.compute(logs_of, list(job.planned)) if job.planned else job.module.compute(logs_of)


def previews(out: str | Path, images: str | Path, names: Iterable[str] = PREVIEWS) -> list[Path]:
    """Redraw small PNGs for the README from the CSV files of `out`, and return them.

    Raises:
        RunError: a figure has not been rendered, or `images` cannot be written to.
    """
    images, written = Path(images), []
    modules = discover()
    for name in sorted(names):
        if name not in modules:
            raise UnknownName("figure", name, modules)
        source = Path(out) / f"{name}.csv"
        if not source.exists():
            raise RunError(f"{source}: is missing; render the figures first")
        figure = modules[name].draw(pd.read_csv(source, keep_default_na=False, na_values=["nan"]))
        make_directory(images)
        write_atomically(images / f"{name}.png", preview(figure))
        written.append(images / f"{name}.png")
    return written


def preview(figure: Figure) -> bytes:
    """Return a figure as a small PNG, laid out at its own resolution, at which letters are a little wider."""
    figure.set_dpi(PREVIEW_DPI)
    return _png(figure)


def _contents(job: Job, frame: pd.DataFrame, note: str) -> dict[str, bytes]:
    """Return the content of every file of a figure or table, all made before any is written."""
    if frame.empty:
        raise FdfaError(f"figure {job.name!r}: nothing to show; {', '.join(job.experiments) or job.bench} holds no row for it")
    contents = {"csv": frame.to_csv(index=False, lineterminator="\n").encode()}
    if job.is_table:
        shown, caption = job.module.show(frame), getattr(job.module, "CAPTION", "")
        below = paragraphs(job.module.explain(frame)) if hasattr(job.module, "explain") else []
        contents["md"] = ("\n\n".join([markdown(shown), *below, *([f"{note}."] if note else [])]) + "\n").encode()
        contents["tex"] = _latex(shown, f"{caption} {note}.".strip() if note else caption, job.name).encode()
        contents["html"] = _html(shown).encode()
        return contents
    figure = job.module.draw(frame)
    if note:
        with style.context():
            layout.banner(figure, note, style.ALARM)
    return contents | _pictures(figure)


def markdown(shown: pd.DataFrame) -> str:
    """Return a table of texts as Markdown; lines of a cell are kept apart by HTML's mark, which Markdown allows."""
    return shown.replace("\n", "<br>", regex=True).to_markdown(index=False, disable_numparse=True)


def paragraphs(explained: Iterable[tuple[str, str]]) -> list[str]:
    """Return titles and paragraphs as paragraphs of Markdown."""
    return [f"**{title}.** {text}" if title else text for title, text in explained]


def write_figure(figure: Figure, out: str | Path, name: str) -> list[Path]:
    """Write ``<name>.{png,pdf}`` of a figure that is not drawn from logs, and return the paths."""
    make_directory(Path(out))
    pictures = _pictures(figure)
    for ending, content in pictures.items():
        write_atomically(Path(out) / f"{name}.{ending}", content)
    return [Path(out) / f"{name}.{ending}" for ending in pictures]


def _pictures(figure: Figure) -> dict[str, bytes]:
    return {"png": _png(figure), "pdf": _save(figure, "pdf", {"Creator": None, "Producer": None, "CreationDate": None})}


def _png(figure: Figure) -> bytes:
    return _save(figure, "png", {"Software": None})


def _save(figure: Figure, kind: str, metadata: dict) -> bytes:
    """Save a figure in memory, without time stamps and versions, so that equal figures are equal files."""
    buffer = io.BytesIO()
    with style.context(), _glyphs_alone():
        layout.settle(figure)
        packed = {"pil_kwargs": {"compress_level": 3}} if kind == "png" else {}  # 6 takes half as long again for 7 % less
        figure.savefig(buffer, format=kind, metadata=metadata, dpi=figure.dpi, **packed)
    return buffer.getvalue()


@contextmanager
def _glyphs_alone() -> Iterator[None]:
    """Let PDFs embed fonts without tables of layout: nothing in a PDF reads them, and they take as long as the drawing."""
    default = getattr(subset.Options, "_drop_tables_default", None)  # fontTools has no public way to say it for matplotlib
    if default is None:
        yield
        return
    subset.Options._drop_tables_default = [*default, "GDEF", "GPOS", "GSUB"]
    try:
        yield
    finally:
        subset.Options._drop_tables_default = default


def _latex(shown: pd.DataFrame, caption: str, name: str) -> str:
    symbols = {"±": r"$\pm$", "−": "$-$", "≤": r"$\le$", "≥": r"$\ge$", "α": r"$\alpha$", "²": "$^2$", "–": "--"}
    symbols |= {"✓": r"$\surd$", "✗": r"$\times$", "≈": r"$\approx$", "○": r"$\circ$", "÷": r"$\div$", "‖": r"$\|$"}
    caption = caption.translate({ord(special): f"\\{special}" for special in "&%$#_{}"})  # pandas escapes no caption
    lines = shown.reset_index(drop=True).replace({"\n": "; ", "`": ""}, regex=True)  # a cell is one line, without marks of code
    table = lines.style.hide(axis="index")
    table = table.format(escape="latex").format_index(escape="latex", axis="columns")
    text = table.to_latex(caption=caption, label=f"tab:{name}", hrules=True, column_format="l" * len(shown.columns))
    return text.translate({ord(symbol): command for symbol, command in symbols.items()})


def _html(shown: pd.DataFrame) -> str:
    """Return the table as HTML; the class of a cell says whether it may be broken, and what a verdict is."""
    table = shown.reset_index(drop=True).style.hide(axis="index").format_index(escape="html", axis="columns")
    return table.format(html_cell).to_html(exclude_styles=True)


def html_cell(text: str) -> str:
    """Return a text of a table as HTML: lines apart, code as code, and a verdict in its class."""
    return "<br>".join(_html_line(line) for line in text.split("\n"))


def _html_line(text: str) -> str:
    classes = ["short" if len(text) < 28 else "long", *filter(None, [_verdicts.kind(text)])]
    content = re.sub(r"`(.+?)`", r"<code>\1</code>", html.escape(text))
    content = re.sub(r"\[[^]]*\]", lambda interval: interval[0].replace(" ", "\N{NO-BREAK SPACE}"), content)
    return f'<span class="{" ".join(classes)}">{content}</span>'


# --- what is up to date ----------------------------------------------------------------------------------------------


def _files(out: Path, job: Job) -> list[Path]:
    return [out / f"{job.name}.{ending}" for ending in job.endings]


def _is_current(out: Path, job: Job, stamp: str) -> bool:
    try:
        known = json.loads((out / ".stamps" / f"{job.name}.json").read_bytes())
        whole = all(known["files"][file.name] == cache.digest(file.read_bytes()) for file in _files(out, job))
        return known["inputs"] == stamp and whole
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(out: Path, job: Job, stamp: str, contents: dict[str, bytes]) -> None:
    for ending, content in contents.items():  # not lasting: a file that is not what its stamp says is drawn again
        write_atomically(out / f"{job.name}.{ending}", content, lasting=False)
    known = {"inputs": stamp, "files": {f"{job.name}.{ending}": cache.digest(content) for ending, content in contents.items()}}
    make_directory(out / ".stamps")
    write_atomically(out / ".stamps" / f"{job.name}.json", json.dumps(known, indent=1).encode(), lasting=False)


def _sources(module: ModuleType, tree: Path | None = None) -> str:
    """Hash the module, all modules of the project that it or the drawing imports, and the libraries' versions.

    Which figures there are, which `figures.plan` finds out, does not matter to what one of them shows.
    """
    code = cache.code(module.__name__, __name__, without={"figures.plan"}, tree=tree)
    return cache.digest(code, cache.versions(*_PACKAGES))


def _hash_files(paths: Iterable[Path]) -> str:
    """Hash names and contents; a missing file counts as such, and reading it later says what is wrong."""
    parts = ((path.name, path.read_bytes() if path.is_file() else b"absent") for path in paths)
    return cache.digest(*(part for pair in parts for part in pair))


# --- where it goes ---------------------------------------------------------------------------------------------------


def open_directory(out: Path) -> Path:
    """Make `out` an output directory, or see that it is one; nothing in it is changed otherwise."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file; accepted: a directory to write figures to")
    make_directory(out)
    if not os.access(out, os.W_OK | os.X_OK):
        raise RunError(f"{out}: cannot be written to (no permission); accepted: a directory that can")
    if not (out / MARKER).exists():
        others = sorted(entry.name for entry in out.iterdir() if MARKER not in entry.name)  # its own leftovers are none
        if others and not (out / MARKER).exists():  # by now another process may have made it one
            raise RunError(
                f"{out}: holds files that are no figures of this project (such as {others[0]!r}); accepted: a new or an empty "
                "directory, or one that holds its figures already"
            )
        write_atomically(out / MARKER, b"Figures and tables, written by fdfa; they can be made again at any time.\n")
    return out
