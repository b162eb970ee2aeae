"""The paper's evaluation: protocols of cached runs, their analysis, and a report page (``report.make_report``)."""

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
"""The protocols in report order: name, and the module that defines it under that name in capitals."""
