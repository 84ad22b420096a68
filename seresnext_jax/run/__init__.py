"""One run: where it starts, when it saves, its log, stop signals, and the setup of JAX."""
