"""Is it any good? Figures that describe an embedding, and scores beside baselines and controls, from arrays alone."""

from scfm.evaluation._annotation import AnnotationScores, annotation_scores
from scfm.evaluation._experiment import run as run_plan
from scfm.evaluation._health import Health, health
from scfm.evaluation._metrics import Metric, metric_table
from scfm.evaluation._report import RobustnessReport

__all__ = [
    "AnnotationScores",
    "Health",
    "Metric",
    "RobustnessReport",
    "annotation_scores",
    "health",
    "metric_table",
    "run_plan",
]
