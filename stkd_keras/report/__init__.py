"""Self-contained HTML reports on students."""

from stkd_keras.report.page import Student, check_report_file, report

__all__ = ["Student", "check_report_file", "report"]
