"""The paper's evaluation: protocols of runs that are kept, what they show, and a page of it (``report.make_report``)."""

PROTOCOLS = {
    "sds": "against_sds",  # Fig. 7
    "truth": "against_sds",
    "shares": "time_shares",  # Fig. 4
    "latent": "pixel_space",  # Fig. 10
    "pixels": "pixel_space",  # Fig. 11
    "iterations": "ablations",  # Fig. 12a
    "views": "ablations",  # Fig. 12b
    "schedules": "ablations",  # Fig. 12c
    "forward": "ablations",  # Fig. 12d
    "pictures": "pictures",  # Table III
}
"""Every protocol in a report's order: its name, and the module that holds it under that name in capitals."""
