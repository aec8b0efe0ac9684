"""export: the tuned models where others look for them, with all that answering a question takes.

export/lm/  query_encoder/  chunk_encoder/    models, for radit_jax.load
export/base_query_encoder/                    the untuned one, to compare with
export/chunks.array_record  embeddings-*  index/  answering.json
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from radit_jax.config import EvaluateConfig, MeshConfig
from radit_jax.runtime.models import load_model, save_model
from radit_jax.runtime.store import PublishedFolder, StageFolder


def run(
    inputs: Mapping[str, StageFolder],
    output: PublishedFolder,
    *,
    evaluate: EvaluateConfig,
    temperature: float,
    mesh: MeshConfig,
) -> dict[str, Any]:
    """Copy the models and the searchable corpus into one folder that needs nothing else."""
    output.clear()
    output.adopt(inputs["lm_ft"], "lm")
    output.adopt(inputs["r_ft"], "query_encoder")
    output.adopt(inputs["retriever"], "chunk_encoder")
    save_model(output.path / "base_query_encoder", load_model(inputs["retriever"].check("query_encoder")))
    output.commit("base_query_encoder")
    output.adopt(inputs["corpus"], "chunks.array_record")
    for name in inputs["embeddings"].manifest["files"]:
        output.adopt(inputs["embeddings"], name)
    output.adopt(inputs["index"], "index")
    output.write_json("answering.json", {"evaluate": asdict(evaluate), "temperature": temperature})
    return {}
