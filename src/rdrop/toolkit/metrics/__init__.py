"""What is measured on a split: for each kind of answer its metrics, and a function that computes them.

Every kind has a module with a tuple of `Metric` records, the main one first and a likelihood or loss second, and a
function that returns a value for each of them. The kinds whose libraries take long to load are imported by module.
"""

from rdrop.toolkit.metrics.classification import (
    BINS,
    CLASSIFICATION_METRICS,
    TWO_CLASS_METRICS,
    classification_metrics,
    confusion,
    reliability,
)
from rdrop.toolkit.metrics.consistency import CONSISTENCY_METRICS, consistency_metrics
from rdrop.toolkit.metrics.main_metric import with_main_metric

__all__ = [
    "BINS",
    "CLASSIFICATION_METRICS",
    "CONSISTENCY_METRICS",
    "TWO_CLASS_METRICS",
    "classification_metrics",
    "confusion",
    "consistency_metrics",
    "reliability",
    "with_main_metric",
]
