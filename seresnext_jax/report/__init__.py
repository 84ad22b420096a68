"""What a run reports: one table of metrics, files for tools, lines and a plot for people."""
