"""From a loss's arguments to its value: checks, plan, kernel. Shared by all losses of one signature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, Required, TypedDict

import torch
from torch import Tensor

from crops.errors import CropsError
from crops.losses.checks import (
    check_embeddings,
    check_identity,
    check_ids,
    check_log_frequency,
    check_values,
)
from crops.losses.contrast import ContrastFunction
from crops.losses.identity import hidden_pairs
from crops.losses.objectives import Objective
from crops.losses.plan import Plan, build_plan

Reduction = Literal["mean", "sum", "none"]


class Options(TypedDict, total=False):
    """The keyword arguments that all losses share; `crops.losses.h_infonce` documents each."""

    temperature: Required[Tensor | float]
    query_id: Tensor | None
    doc_id: Tensor | None
    min_anchor_label: int
    reduction: Reduction
    known: tuple[Tensor, Tensor] | None
    label_weights: Mapping[int, float] | None
    margin: float | None
    log_q: Tensor | None


def prepare(
    query_emb: Tensor, doc_emb: Tensor, query_index: Tensor, labels: Tensor, options: Options
) -> tuple[tuple[Tensor, float], Plan]:
    """Check the arguments; return the temperature as a tensor and as a number, and the plan.

    Raises:
        CropsError: see `crops.losses.h_infonce`.
    """
    check_embeddings(query_emb, doc_emb)
    for name, values in (("query_index", query_index), ("labels", labels)):
        check_ids(name, values, len(doc_emb))
    reduction = options.get("reduction", "mean")
    if reduction not in ("mean", "sum", "none"):
        raise CropsError(f"unknown reduction '{reduction}'; known: mean, sum, none")
    temperature = options["temperature"]
    if not isinstance(temperature, Tensor):
        temperature = torch.tensor(temperature, dtype=torch.float64, device=query_emb.device)
    facts = check_values(query_emb, doc_emb, query_index, labels, temperature)
    plan = build_plan(
        len(query_emb),
        query_index,
        labels,
        options.get("min_anchor_label", 1),
        facts,
        options.get("label_weights"),
    )
    return (temperature, facts.tau), _with_options(plan, query_index, options)


def _with_options(plan: Plan, query_index: Tensor, options: Options) -> Plan:
    query_id, doc_id, known = options.get("query_id"), options.get("doc_id"), options.get("known")
    if query_id is not None or doc_id is not None or known is not None:
        check_identity(plan.queries, plan.documents, query_id, doc_id, known)
        row, doc = hidden_pairs(query_index, query_id, doc_id, known)
        row, order = row.sort()
        plan = replace(plan, hidden=(row, doc[order]))
    margin = options.get("margin")
    if margin is not None:
        if not -2 <= margin <= 2:
            raise CropsError(f"margin is {margin}; give a difference of cosines, from -2 to 2")
        plan = replace(plan, margin=margin)
    log_q = options.get("log_q")
    if log_q is not None:
        plan = replace(plan, log_q=log_q, log_q_size=check_log_frequency(log_q, plan.documents))
    return plan


def evaluate(
    objective: Objective,
    query_emb: Tensor,
    doc_emb: Tensor,
    temperature: tuple[Tensor, float],
    plan: Plan,
    reduction: Reduction = "mean",
    count: int | None = None,
) -> Tensor:
    """Return the reduced loss, with its gradient.

    Args:
        objective: which loss.
        query_emb: [Q, d].
        doc_emb: [N, d].
        temperature: tau as a tensor and as a number.
        plan: who contrasts with whom.
        reduction: see `crops.losses.h_infonce`.
        count: what "mean" divides by, None = the anchors.
    """
    scale = {"mean": 1 / (count or plan.anchors), "sum": 1.0, "none": None}[reduction]
    if query_emb.dtype in (torch.float16, torch.bfloat16):
        query_emb, doc_emb = query_emb.float(), doc_emb.float()
    if plan.log_q is not None:
        plan = replace(plan, log_q=plan.log_q.detach().to(query_emb))
    with torch.autocast(query_emb.device.type, enabled=False):
        result: Tensor = ContrastFunction.apply(  # type: ignore[no-untyped-call]
            query_emb, doc_emb, *temperature, plan, objective, scale, torch.is_grad_enabled()
        )
    return result
