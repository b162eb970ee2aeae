"""Multi-view diffusion: the mathematics, the protocol and the models."""
