"""Multi-view diffusion: noise process, samplers, the model protocol and the models."""
