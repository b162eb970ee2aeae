from typing import Any

import torch

class CFGGuider:
    inner_model: Any
    conds: dict[str, Any]
    cfg: float
    def __init__(self, model_patcher: Any) -> None: ...
    def predict_noise(
        self, x: torch.Tensor, timestep: torch.Tensor, model_options: dict = ..., seed: int | None = ...
    ) -> torch.Tensor: ...

def calc_cond_batch(
    model: Any, conds: list[Any], x_in: torch.Tensor, timestep: torch.Tensor, model_options: dict
) -> list[torch.Tensor]: ...
