"""The report on a run: one HTML file that stands alone."""

from stkd_keras.report.page import check_report_file
from stkd_keras.report.writing import Student, write_report

__all__ = ["Student", "check_report_file", "write_report"]
