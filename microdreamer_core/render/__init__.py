"""Differentiable renderers behind one protocol."""

from .backends import available_renderers, get_renderer
from .protocol import Render, SplatRenderer, Splats
from .threads import get_threads, set_threads

__all__ = ["Render", "SplatRenderer", "Splats", "available_renderers", "get_renderer", "get_threads", "set_threads"]
