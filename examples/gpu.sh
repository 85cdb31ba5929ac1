#!/bin/sh
# Train a language model on GPUs
#
# On all GPUs of a machine, one process each, Qwen2.5-0.5B or any other model of the Hub (`MODEL=BAAI/bge-m3`): a
# batch is shared, and each query of it is contrasted with the documents of all processes.
#
#     sh gpu.sh MINED OUT
#
# A process takes, in bytes:
#
# | for | bytes | |
# |---|---|---|
# | weights, gradients and Adam's two moments, in single precision | 16 × weights | 8 GB for 494 million |
# | activations of one pass | what a text takes × `CHUNK` | grows with depth, width and length, not with the batch |
# | vectors of the batch and their gradients | 8 × texts of the batch × width | 0.2 GB for 28,000 texts of 896 numbers |
#
# So the batch may be as large as you like (`QUERIES`, each with up to 24 documents): only `CHUNK`, the most texts in one
# pass, is bound by memory. Double it while the card has room. With `lora_rank` in a `--config` only the adapters
# have gradients and moments, and the first line becomes 4 × weights. [Training](../docs/training.md#large-batches) says
# more. This command was tested with a small model of the same architecture on two processes without a GPU;
# nobody has measured it on one.
set -eu
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
torchrun --no-python --nproc-per-node "${PROCESSES:-gpu}" crops train "$1" "$2" --encoder "${MODEL:-qwen2.5-0.5b}" \
  --bf16 --encode-chunk "${CHUNK:-64}" --batch-queries "${QUERIES:-1024}" --steps "${STEPS:-2000}"
