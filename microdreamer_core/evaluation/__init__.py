"""The paper's evaluation: protocols of cached runs, their analysis, and a report page (``report.make_report``)."""

PROTOCOLS = ("sds", "truth", "shares", "latent", "pixels", "iterations", "views", "schedules", "forward", "pictures")
"""The protocols in report order: Fig. 7 (``sds``, ``truth``), 4, 10, 11 and 12a to 12d, and Table III (``pictures``)."""
