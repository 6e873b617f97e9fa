"""LOOK AT IT: one HTML file of any results, that opens without a network; files to pass on."""

from lens_skills.reporting.exported import export as export
from lens_skills.reporting.written_report import report as report
