"""3D representations that SIR optimises."""
