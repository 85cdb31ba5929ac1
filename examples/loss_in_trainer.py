"""The loss in SentenceTransformerTrainer.

H-InfoNCE in a training script of your own, with nothing else of crops. A line of GROUPS is a query with its
graded documents, as `crops export MINED OUT` writes them; any other grades from 0 up will do, and groups may
have any size.

    python loss_in_trainer.py GROUPS.jsonl MODEL OUT

MODEL is any SentenceTransformer, by folder or name. The trainer needs `pip install datasets`. What the loss
and the collator take, and what a checkpoint keeps: [losses](../docs/losses.md#sentencetransformertrainer).
"""

import json
import sys
from pathlib import Path

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)

from crops.losses import GroupCollator, HInfoNCELoss

groups, start, out = sys.argv[1:4]
rows = []
for line in Path(groups).read_text().splitlines():
    group = json.loads(line)
    texts, labels = zip(*((one["text"], one["label"]) for one in group["documents"]), strict=True)
    rows.append({"query": group["query"], "documents": texts, "labels": labels})
model = SentenceTransformer(start)
trainer = SentenceTransformerTrainer(
    model=model,
    args=SentenceTransformerTrainingArguments(out, num_train_epochs=1, learning_rate=2e-5),
    train_dataset=Dataset.from_list(rows),
    loss=HInfoNCELoss(model, temperature=0.05),
    data_collator=GroupCollator(model.preprocess),
)
trainer.train()
model.save_pretrained(out)
