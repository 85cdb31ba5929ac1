"""Evaluation: metrics, test sets of a day of logs, judged collections, significance."""

from crops.evaluation.evaluate import evaluate
from crops.evaluation.facts import AGES, FREQUENCIES, Facts, build_facts, load_facts, save_facts
from crops.evaluation.judged import Fold, evaluate_judged, folds
from crops.evaluation.metrics import grades_of, ndcg_at_k, recall_at_k, reciprocal_rank
from crops.evaluation.ranking import ScoringRetriever
from crops.evaluation.results import Evaluation, Summary, compare, pool_evaluations
from crops.evaluation.significance import (
    MIN_QUERIES,
    Difference,
    Interval,
    bootstrap_interval,
    paired_bootstrap,
)
from crops.evaluation.testsets import TestSets, build_testsets, load_testsets, save_testsets
from crops.evaluation.truth import TruthSets

__all__ = [
    "AGES",
    "FREQUENCIES",
    "MIN_QUERIES",
    "Difference",
    "Evaluation",
    "Facts",
    "Fold",
    "Interval",
    "ScoringRetriever",
    "Summary",
    "TestSets",
    "TruthSets",
    "bootstrap_interval",
    "build_facts",
    "build_testsets",
    "compare",
    "evaluate",
    "evaluate_judged",
    "folds",
    "grades_of",
    "load_facts",
    "load_testsets",
    "ndcg_at_k",
    "paired_bootstrap",
    "pool_evaluations",
    "recall_at_k",
    "reciprocal_rank",
    "save_facts",
    "save_testsets",
]
