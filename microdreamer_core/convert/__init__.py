"""Conversion between representations: a mesh, a NeRF or an image to Gaussians, by fitting."""
