"""LOOK AT IT: one HTML file of any results, that opens without a network; tables for a paper."""

from lens_skills.reporting.written_report import report as report
