"""Evaluation: metrics, test sets of a day of logs, judged collections, significance."""

from crops.evaluation.evaluate import (
    Evaluation,
    ScoringRetriever,
    Summary,
    compare,
    evaluate,
    pool_evaluations,
)
from crops.evaluation.judged import Fold, evaluate_judged, folds
from crops.evaluation.metrics import grades_of, ndcg_at_k, recall_at_k, reciprocal_rank
from crops.evaluation.significance import (
    MIN_QUERIES,
    Difference,
    Interval,
    bootstrap_interval,
    paired_bootstrap,
)
from crops.evaluation.testsets import (
    AGES,
    FREQUENCIES,
    Facts,
    TestSets,
    TruthSets,
    build_facts,
    build_testsets,
    load_facts,
    load_testsets,
    save_facts,
    save_testsets,
)

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
