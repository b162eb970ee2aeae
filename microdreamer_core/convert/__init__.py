"""From one representation to the other: a mesh or a NeRF to Gaussians, by fitting."""
