"""The paper's evaluation: subjects with known truth, protocols, and the report that `microdreamer report` writes."""
