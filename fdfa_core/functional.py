"""The published path of `fdfa_core.linearisation.functional.functional_call`."""

from fdfa_core.linearisation.functional import functional_call

__all__ = ["functional_call"]
