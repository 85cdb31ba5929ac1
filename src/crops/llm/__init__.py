"""World knowledge (P3): an LLM as pseudo-retriever, from the prompt to checked documents; an LLM as judge."""

from crops.llm.embedded import embedded_server, smoke_model
from crops.llm.endpoint import Budget, Endpoint
from crops.llm.generate import generate, generate_documents, training_requests
from crops.llm.judge import Judged, judge_pairs, load_rubric
from crops.llm.prompt import Exemplar, Prompt, Request, load_prompt

__all__ = [
    "Budget",
    "Endpoint",
    "Exemplar",
    "Judged",
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
