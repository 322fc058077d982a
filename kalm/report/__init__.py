"""The last stage: from what the other stages left on disk to tables, plots and one page that can be sent around."""

from kalm.report.write import ReportPaths, write_report

__all__ = ["ReportPaths", "write_report"]
