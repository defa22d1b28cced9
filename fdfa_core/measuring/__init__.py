"""Measuring estimators against the true gradient: draws → scalars → moments → rows of a table."""
