"""Labels of estimators, for logs and figures."""

from __future__ import annotations


def label(name: str, options: dict[str, object] | None = None) -> str:
    """Return a short unique label of an estimator with the options that were given, e.g. ``fdfa(feedback_lr=0.1)``.

    Examples:
        >>> from fdfa_core.estimators import label
        >>> label("fdfa", {"feedback_lr": 0.1})
        'fdfa(feedback_lr=0.1)'
    """
    if not options:
        return name
    return f"{name}({', '.join(f'{key}={value}' for key, value in sorted(options.items()))})"
