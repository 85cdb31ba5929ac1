"""Independent, literal forms of the losses: one anchor at a time, one denominator term at a time."""

import torch


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
