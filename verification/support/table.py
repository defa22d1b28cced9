"""What each cell of the support matrix is declared to be: tests hold it against what happens, and the page shows it."""

from __future__ import annotations

from dataclasses import dataclass

from fdfa_core.estimators.index import packaged

# column → (method, options): every method as it is, but at the site that all blocks have
COLUMNS: dict[str, tuple[str, dict[str, object]]] = {
    name: (name, {"site": "post"} if "fg-a" in name else {})
    for name in sorted(packaged(), key=lambda name: (name != "bp", name))
} | {"fg-a, slope of the batch": ("fg-a", {"site": "post", "slope": "batch"})}
COLUMNS["fg-a, best shares"] = ("fg-a", {"site": "post", "tangents": 2, "allocation": "optimal"})
COLUMNS |= {f"{name}, rank 2": (name, {"rank": 2}) for name in ("dfa", "dkp", "fdfa")}

VERDICTS = {
    "exact": "the estimate is the gradient of reverse mode",
    "unbiased": "fg-w measures the exact slope along its direction; the mean of fg-a's draws is the gradient",
    "as defined": "the method trains as its definition says: its readout gets the gradient of reverse mode (that of pepita, zo "
    "and of the averaged methods is another by definition), and tangents and local gradients are those of reverse mode",
    "biased": "the mean of the draws is not the gradient, as the note says",
    "refused": "an error that names the cause and, where there is one, the remedy",
}
_USUAL = {"bp": "exact", "fg-w": "unbiased", "fg-a": "unbiased", "fg-a, slope of the batch": "unbiased",
          "fg-a, best shares": "unbiased"}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What is declared of some columns of a row.

    Attributes:
        columns: where it holds.
        verdict: of `VERDICTS`.
        note: why, for the page.
        message: part of the error, where the cell is refused.
    """

    columns: tuple[str, ...]
    verdict: str
    note: str
    message: str = ""


def _all_but(*columns: str) -> tuple[str, ...]:
    return tuple(column for column in COLUMNS if column not in columns)


_WITH_TANGENTS = ("cosine-dfa", "fdfa", "fdfa-averaged", "fg-a", "fg-a-averaged", "fg-w", "grape", "guess", "lg-fg-w",
                  "fg-a, slope of the batch", "fg-a, best shares", "fdfa, rank 2")  # fmt: skip
_INDICES = Cell(
    ("pepita",), "refused", "pepita adds an error to the input, which indices cannot take", "must hold floating-point numbers"
)
_COUPLED = Cell(
    ("fg-a",),
    "biased",
    "samples are coupled, and fg-a takes the slope of each sample's own loss; `slope=\"batch\"` is unbiased; "
    "`fg-a-averaged` and `lg-fg-a` are biased for the same reason, which is not measured here",
)

_COUPLED_SHARES = Cell(("fg-a, best shares",), _COUPLED.verdict, _COUPLED.note)

EXCEPTIONS: dict[str, tuple[Cell, ...]] = {
    "batch normalisation": (
        _COUPLED,
        Cell(
            ("fg-a, best shares",), "refused", "samples are coupled, and the best shares need each one's own error",
            "where the error of a sample is not its own",
        ),
    ),
    "a linear layer without a batch": (_COUPLED, _COUPLED_SHARES),
    "sparse matrix": (_COUPLED, _COUPLED_SHARES),
    "embedding": (_INDICES,),
    "embedding, sparse gradients": (_INDICES,),
    "embedding bag": (
        _INDICES,
        Cell(
            ("fg-w", "lg-fg-w"), "refused", "torch has no tangent for `nn.EmbeddingBag`", "cannot follow torch's embedding_bag"
        ),
    ),
    "no_grad around what trains": (
        Cell(
            ("fg-w", "zo"),
            "refused",
            "no gradient reaches the parameters, so that their true gradient counts as zero: set `requires_grad_(False)`",
            "set requires_grad_(False) on them",
        ),
    ),
    "autograd.Function without jvp": (
        Cell(_WITH_TANGENTS, "refused", "give the function a `jvp`", "You must implement the jvp function"),
    ),
    "backward hook": (
        Cell(_all_but("bp"), "refused", "no backward pass goes through the network", "which only bp calls"),
    ),
    "autocast around the estimator": (
        Cell(_all_but("bp"), "refused", "estimators keep to the type of the parameters", "torch.autocast: got 'on'"),
    ),
    "float16": (
        Cell(
            ("dkp", "dkp, rank 2", "lg-fg-a", "lg-fg-w"), "refused", "the state learns by Adam, too fine for float16",
            "learns by Adam",
        ),
    ),
    "inputs in a dict, not cut with one": (
        Cell(tuple(COLUMNS), "refused", "give `cut` a dict as its example, or pack the inputs", "x: got 'a dict'"),
    ),
    "indices and a mask in a dict": (_INDICES,),
    "a loss per token": (
        Cell(("drtp",), "refused", "drtp needs one class per sample", "y: shape: got (5, 4)"),
    ),
    "torch.func.grad inside": (
        Cell(("fa",), "refused", "fa cannot put random weights where the block differentiates", "fa changes its values"),
    ),
}  # fmt: skip


def expected(row: str, column: str) -> Cell:
    """Return what a cell is declared to be; `note` and `message` are empty where nothing is particular about it."""
    for exception in EXCEPTIONS.get(row, ()):
        if column in exception.columns:
            return exception
    return Cell((column,), _USUAL.get(column, "as defined"), "")
