"""The input backends. Each one that reads files is a module of its name that defines `BACKEND`."""
