"""Independent, literal forms of the losses: one anchor at a time, one denominator term at a time."""

import math

import torch

QUERY = torch.tensor([[1.0, 0.0]], dtype=torch.float64)


def axis(cosines):
    """Documents [n, 2] whose first coordinate is the given cosine with the query (1, 0)."""
    return torch.tensor([[c, math.sqrt(1 - c * c)] for c in cosines], dtype=torch.float64)


def eq3_terms(query_index, labels, query_id, doc_id, i, known=()):
    """Columns in the denominator of anchor i beside itself: Eq. 3 read literally, with the id masks."""
    q = query_index[i]
    group_ids = {doc_id[j] for j in range(len(labels)) if query_index[j] == q} | {
        d for row, d in known if row == q
    }
    terms = []
    for j in range(len(labels)):
        if query_index[j] == q:
            if labels[j] < labels[i]:
                terms.append(j)
        else:
            twin = query_index[j] >= 0 and query_id[query_index[j]] == query_id[q]
            if not twin and doc_id[j] not in group_ids:
                terms.append(j)
    return terms


def eq3_loop(
    query_emb, doc_emb, query_index, labels, tau, *, query_id=None, doc_id=None, min_anchor_label=1, known=()
):
    """Loss of each document, [N], zero where it is no anchor."""
    index, label = query_index.tolist(), labels.tolist()
    query_id = list(range(len(query_emb))) if query_id is None else query_id.tolist()
    doc_id = list(range(len(doc_emb))) if doc_id is None else doc_id.tolist()
    losses = [doc_emb.new_zeros(()) for _ in index]
    for i, q in enumerate(index):
        if q >= 0 and label[i] >= min_anchor_label:
            terms = [i, *eq3_terms(index, label, query_id, doc_id, i, known)]
            scores = doc_emb[terms] @ query_emb[q] / tau
            losses[i] = torch.logsumexp(scores, 0) - scores[0]
    return torch.stack(losses)


def appendix(query_emb, doc_emb, query_index, labels, tau):
    """The paper's N x N form: rows are anchors, columns documents, masked entries get minus infinity.

    Args are as of `h_infonce`, every document with a query; all documents are anchors. Returns [N].
    """
    scores = query_emb[query_index] @ doc_emb.T / tau
    same_query = query_index[:, None] == query_index[None, :]
    not_lower = labels[None, :] >= labels[:, None]
    mask = same_query & not_lower & ~torch.eye(len(labels), dtype=torch.bool)
    return -torch.log_softmax(scores.masked_fill(mask, -torch.inf), dim=1).diagonal()


def listwise_loop(query_emb, doc_emb, query_index, labels, tau, denominator="batch"):
    """Cross-entropy of each query with a target, [Q], one term at a time."""
    index, losses = query_index.tolist(), []
    for q in range(len(query_emb)):
        own = [i for i, row in enumerate(index) if row == q]
        gains = [2 ** int(labels[i]) - 1 for i in own]
        if not sum(gains):
            continue
        terms = []
        for i, gain in zip(own, gains, strict=True):
            columns = {
                "batch": range(len(index)),
                "own": own,
                "lower": [j for j in range(len(index)) if index[j] != q or labels[j] < labels[i] or j == i],
            }[denominator]
            scores = torch.stack([doc_emb[j] @ query_emb[q] / tau for j in columns])
            terms.append(gain / sum(gains) * (torch.logsumexp(scores, 0) - doc_emb[i] @ query_emb[q] / tau))
        losses.append(sum(terms))
    return torch.stack(losses)


def logistic_loop(query_emb, doc_emb, query_index, labels, tau, min_anchor_label=1):
    """Binary logistic loss of each document with its query's noise, [N], zero where it is no anchor."""
    index, label = query_index.tolist(), labels.tolist()
    losses = [doc_emb.new_zeros(()) for _ in index]
    for i, q in enumerate(index):
        if q >= 0 and label[i] >= min_anchor_label:
            noise = [j for j, row in enumerate(index) if row != q or label[j] < min_anchor_label]
            odds = (
                doc_emb @ query_emb[q] / tau
                - torch.tensor(float(max(1, len(noise))), dtype=doc_emb.dtype).log()
            )
            losses[i] = torch.log1p(torch.exp(-odds[i])) + sum(torch.log1p(torch.exp(odds[j])) for j in noise)
    return torch.stack(losses)
