"""`crops export-onnx`: a trained encoder for serving where there is no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crops.config import TrainingConfig
from crops.outputs import cache_folder, console, publish, timed, write_manifest


def export_onnx(
    model: Annotated[str, typer.Argument(help="Model folder, preset or SentenceTransformer name.")],
    out: Annotated[Path, typer.Argument(help="Folder for graphs and tokenizers.")],
    max_tokens: Annotated[
        int | None, typer.Option(help="Longer texts are cut.", show_default="the model's, at most 128")
    ] = None,
) -> float:
    """Write an encoder as ONNX, pooling and unit length included, and compare it with the model."""
    from crops.encoders import encoder_folder, load_encoder, rendering_of  # torch: seconds to import
    from crops.encoders.onnx_export import export_onnx as export
    from crops.relevance.models import model_hash
    from crops.text import PLAIN

    config = TrainingConfig(encoder=model, **({} if max_tokens is None else {"max_tokens": max_tokens}))
    seconds: dict[str, float] = {}
    with publish(out, "export-onnx") as folder:
        with timed(seconds, f"export {model}"):
            encoder = load_encoder(config, cache_folder())
            cosine = export(encoder, folder)
        write_manifest(
            folder,
            "export-onnx",
            config=config.model_dump(exclude_none=True),
            seconds=seconds,
            cosine=cosine,
            model_hash=model_hash(encoder_folder(config, cache_folder())),
            reads_features=rendering_of(encoder) is not PLAIN,
        )
    console.print(f"ONNX in [bold]{out}[/bold]; lowest cosine to the model {cosine:.7f}")
    return cosine
