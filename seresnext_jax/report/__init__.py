"""Reporting: the table of metrics, report files for tools, console output and a plot for people."""
