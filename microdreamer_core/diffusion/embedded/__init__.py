"""The checkpoint shipped with the package: architecture, procedural data, training."""
