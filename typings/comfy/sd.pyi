from typing import Any

import torch

def load_state_dict_guess_config(
    sd: dict[str, torch.Tensor], *, output_model: bool = True, embedding_directory: list[str] | None = None
) -> tuple[Any, Any, Any, Any]: ...
