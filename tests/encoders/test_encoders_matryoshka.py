import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize

from crops.encoders import over_dims
from crops.errors import CropsError
from crops.losses import h_infonce


def cosines(query_emb, doc_emb, *, scale=1.0):
    return scale * (query_emb @ doc_emb.T).sum()


def test_widths_add_up_by_hand():
    """Full: (.6, .8).(1, 0) = 0.6. First number: .6 and 1 become 1 and 1, product 1. Sum 1.6, doubled 3.2."""
    query, doc = torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0.0]])
    assert over_dims(cosines, (1,))(query, doc, scale=2.0).item() == pytest.approx(3.2)


def test_no_widths_is_the_loss_itself():
    assert over_dims(cosines, ()) is cosines


def test_h_infonce_over_widths_is_the_sum_of_its_parts():
    torch.manual_seed(0)
    query = normalize(torch.randn(3, 8), dim=1).requires_grad_()
    doc = normalize(torch.randn(6, 8), dim=1)
    given = {"temperature": torch.tensor(0.1)}
    index, labels = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([4, 1, 5, 2, 4, 0])
    total = over_dims(h_infonce, (2, 4))(query, doc, index, labels, **given)
    parts = [
        h_infonce(normalize(query[:, :d], dim=1), normalize(doc[:, :d], dim=1), index, labels, **given)
        for d in (2, 4)
    ]
    parts.append(h_infonce(query, doc, index, labels, **given))
    assert total.item() == pytest.approx(sum(part.item() for part in parts))
    (ours,) = torch.autograd.grad(total, query)
    (theirs,) = torch.autograd.grad(sum(parts), query)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dim", [2, 3])
def test_a_width_that_is_no_part_is_refused(dim):
    with pytest.raises(
        CropsError, match=f"matryoshka_dims: {dim} is not below the 2 dimensions of the encoder"
    ):
        over_dims(cosines, (1, dim))(torch.ones(1, 2), torch.ones(1, 2))


def test_plain_sentence_transformers_uses_the_width(tiny_base):
    whole = SentenceTransformer(str(tiny_base), device="cpu").encode(["cat"])[:, :4]
    part = SentenceTransformer(str(tiny_base), device="cpu", truncate_dim=4)
    ours = part.encode(["cat"], normalize_embeddings=True)
    np.testing.assert_allclose(ours, whole / np.linalg.norm(whole), atol=1e-6)
