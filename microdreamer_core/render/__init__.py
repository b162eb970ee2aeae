"""Differentiable renderers of Gaussians, density fields and meshes."""

from ..util.threads import get_threads, set_threads
from .backends import available_renderers, get_renderer
from .protocol import Render, SplatRenderer, Splats

__all__ = ["Render", "SplatRenderer", "Splats", "available_renderers", "get_renderer", "get_threads", "set_threads"]
