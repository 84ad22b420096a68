"""What a run tells: files that tools read, lines and bars that people read, a plot."""
