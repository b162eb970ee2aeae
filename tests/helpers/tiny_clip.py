"""A tiny random CLIP."""

from __future__ import annotations

import json
from pathlib import Path

import torch

SIZE = 32
"""Pixels of its images."""


def write_clip(folder: Path) -> Path:
    """Write a random CLIP and its tokenizer of single letters into a folder, as transformers does, and return the folder."""
    import transformers  # only where one is wanted: it loads for seconds

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocabulary = {
        word: i for i, word in enumerate([*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"])
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 12}))
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    start, end = (vocabulary[f"<|{word}oftext|>"] for word in ("start", "end"))
    ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    config = transformers.CLIPConfig(
        text_config={**small, **ids, "vocab_size": len(vocabulary), "max_position_embeddings": 12},
        vision_config={**small, "image_size": SIZE, "patch_size": 8},
        projection_dim=24,
    )
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        transformers.CLIPModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}))
    return folder
