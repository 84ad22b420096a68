"""The input backends. One that reads files is a module with the backend's name and a `BACKEND`."""
