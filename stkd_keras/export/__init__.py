"""Exports students to other runtimes and evaluates the files."""

from stkd_keras.export.formats import FORMATS, check_export, export, format_export

__all__ = ["FORMATS", "check_export", "export", "format_export"]
