"""What came of a run: as a table on the console, as a page for people, beside other runs."""

from iris_ray.report.results import results_table
from iris_ray.report.write import rewrite_report, write_comparison, write_report

__all__ = ["results_table", "rewrite_report", "write_comparison", "write_report"]
