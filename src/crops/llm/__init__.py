"""World knowledge (P3): an LLM as pseudo-retriever, from the prompt to checked documents."""

from crops.llm.client import generate
from crops.llm.documents import generate_documents, training_requests
from crops.llm.embedded import embedded_server
from crops.llm.endpoint import Endpoint
from crops.llm.prompt import Exemplar, Prompt, Request, load_prompt

__all__ = [
    "Endpoint",
    "Exemplar",
    "Prompt",
    "Request",
    "embedded_server",
    "generate",
    "generate_documents",
    "load_prompt",
    "training_requests",
]
