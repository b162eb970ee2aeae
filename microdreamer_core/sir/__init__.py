"""The paper's algorithm: plans, stages of an iteration, the loop, reconstruction, and SDS beside it."""
