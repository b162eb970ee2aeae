"""The paper's algorithm: plans, the stages of an iteration, the loop, reconstruction, and SDS as a baseline."""
