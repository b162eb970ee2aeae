"""All nodes, in the order of the pipeline."""

from __future__ import annotations

from . import (
    cameras,
    condition,
    control,
    evaluate,
    field,
    forward,
    generate,
    history,
    image_to_3d,
    load,
    loop,
    mesh,
    models,
    native_model,
    output,
    reconstruct,
    reference,
    refine,
    render,
    schedule,
    sds,
    splat,
    texture,
    viewpoint,
)

_STAGES = (
    models,
    native_model,
    reference,
    condition,
    control,
    schedule,
    field,
    load,
    generate,
    history,
    image_to_3d,
    cameras,
    viewpoint,
    render,
    forward,
    refine,
    reconstruct,
    loop,
    sds,
    mesh,
    texture,
    output,
    splat,
    evaluate,
)

NODES = tuple(node for stage in _STAGES for node in stage.NODES)
