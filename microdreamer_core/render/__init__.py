"""Differentiable renderers behind one protocol."""
