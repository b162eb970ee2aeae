"""The checkpoint shipped with the package: its architecture, and the procedural toys of its training and tests."""
