"""Exact theory: closed forms of the estimators' means and variances, laws that follow from them, and where they turn.

`predict` gives the mean and variance of every gradient component, `feedback_law` those of FDFA's feedback. `laws` holds what
follows for averages over dimensions, scaling, angles and the best α; `conditions` the table of where "the variance is lower"
holds. Derivations, assumptions and sources are in docs/theory.md.
"""

from analysis.theory.conditions import conditions
from analysis.theory.feedback import FeedbackLaw, feedback_drift, feedback_law, lag_bias
from analysis.theory.prediction import Prediction
from analysis.theory.predictions import FORMULAS, predict

__all__ = ["FORMULAS", "FeedbackLaw", "Prediction", "conditions", "feedback_drift", "feedback_law", "lag_bias", "predict"]
