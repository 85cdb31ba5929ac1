"""World knowledge (P3): an LLM as pseudo-retriever, from the prompt to checked documents; an LLM as judge."""

from crops.llm.batch import Budget
from crops.llm.endpoint import Endpoint, embedded_server, smoke_model
from crops.llm.generate import (
    JudgePair,
    generate,
    generate_documents,
    judge_pairs,
    load_rubric,
    training_requests,
)
from crops.llm.prompt import Exemplar, Prompt, Request, load_prompt

__all__ = [
    "Budget",
    "Endpoint",
    "Exemplar",
    "JudgePair",
    "Prompt",
    "Request",
    "embedded_server",
    "generate",
    "generate_documents",
    "judge_pairs",
    "load_prompt",
    "load_rubric",
    "smoke_model",
    "training_requests",
]
