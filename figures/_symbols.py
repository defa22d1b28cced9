"""Symbols of verdicts, so that colour alone never says one."""

SYMBOLS = {"supported": "✓", "refuted": "✗", "equivalent": "≈", "inconclusive": "?"}
OPEN = "○"  # not judged


def marked(verdict: str) -> str:
    """Return a verdict with its symbol."""
    return f"{SYMBOLS.get(verdict, OPEN)} {verdict}"


def kind(text: str) -> str:
    """Return the verdict that a marked text says, "open" where it says that nothing is judged, "" for any other text."""
    symbol, space, rest = text.partition(" ")
    if space and symbol == OPEN:
        return "open"
    return rest if space and SYMBOLS.get(rest) == symbol else ""
