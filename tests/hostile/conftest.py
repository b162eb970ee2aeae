"""What the tests measured (``record_property``) stands at the end of the output, for docs/status.md."""


def pytest_terminal_summary(terminalreporter):
    for kind in ("passed", "failed"):
        for report in terminalreporter.getreports(kind):
            for name, value in report.user_properties:
                terminalreporter.write_line(f"{name}: {value}")
