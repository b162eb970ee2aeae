"""t2, t1 and network calls of every iteration against the released schedule functions."""

import json
import os
from pathlib import Path

import pytest
from safetensors import safe_open

from microdreamer_core.sir.plan import SIRPlan
from microdreamer_core.sir.presets import get_plan

FIXTURES = Path(os.environ.get("MICRODREAMER_FIXTURES", Path(__file__).parents[1] / "fixtures"))
TABLES = json.loads((FIXTURES / "schedule.json").read_text())
PRESET_OF = {"image_sai": "stable-zero123-gaussians", "imagedream": "imagedream-gaussians"}

with safe_open(FIXTURES / "ddim.safetensors", "pt") as _file:
    CASES = json.loads(_file.metadata()["cases"])


@pytest.mark.parametrize("name", TABLES)
def test_released_configuration(name):
    table = TABLES[name]
    rows = table["rows"]
    plan = get_plan(PRESET_OF[name.split()[0]], iterations=len(rows) - 1)
    init = rows[0]
    assert (plan.discretization, plan.init_steps, plan.views) == (init[4], init[5], init[6])
    for row, times in zip(rows[1:], plan.times(seed=0), strict=True):
        assert [times.k + 1, times.t2, times.t1, times.inversion, times.sampling, plan.steps, plan.views] == row
    count = plan.evaluations()
    assert (count.inversion, count.sampling) == (table["inversion_calls"], table["denoise_calls"])
    assert count.per_view_paper == table["nfe_per_view"]
    assert count.per_view == table["nfe_single_branch_inversion"]
    assert count.total == count.per_view * plan.views


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case["init"]])
def test_t1_is_floored_to_the_grid(name):
    """t1 of the refinement loops from their t2 and ratio."""
    case = CASES[name]
    n, t2 = case["denoise_steps"], case["t2"]
    start = 1 - (n - 1 - (t2 - 1) // (1000 // n) + 0.5) / n  # half a step inside the cell of t2
    plan = SIRPlan(
        "case", iterations=1, discretization=n, t2_start=start, t2_end=start, t1_rule="ratio", t1_ratio=case["inv_ratio"]
    )
    times = plan.times(seed=0)[0]
    assert (times.t2, times.t1) == (t2, case["t1"])
    assert times.calls == case["unet_calls"]
