import pytest
import torch
import torch.nn.functional as F


@pytest.fixture
def ragged():
    """A factory of random ragged batches: (query_emb, doc_emb, query_index, labels)."""

    def make(seed, queries=5, dim=7, most=6, levels=6, dtype=torch.float64, strays=2, shuffle=True):
        generator = torch.Generator().manual_seed(seed)
        sizes = torch.randint(1, most + 1, (queries,), generator=generator)
        index = torch.cat([torch.repeat_interleave(torch.arange(queries), sizes), torch.full((strays,), -1)])
        if shuffle:
            index = index[torch.randperm(len(index), generator=generator)]
        labels = torch.randint(0, levels, (len(index),), generator=generator)
        labels[(index >= 0).nonzero()[0]] = levels - 1
        query_emb = F.normalize(torch.randn(queries, dim, generator=generator, dtype=dtype), dim=1)
        doc_emb = F.normalize(torch.randn(len(index), dim, generator=generator, dtype=dtype), dim=1)
        return query_emb, doc_emb, index, labels

    return make
