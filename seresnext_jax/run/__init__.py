"""One run: where it starts, when it saves, its log, stop signals, what JAX needs to know first."""
