"""3D representations that SIR optimises: Gaussians, NeRF and mesh textures."""
