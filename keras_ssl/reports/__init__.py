"""Pages about runs."""

from keras_ssl.reports.html import run_report, write_report

__all__ = ["run_report", "write_report"]
