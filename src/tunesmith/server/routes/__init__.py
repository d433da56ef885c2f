"""One module a group of paths; each has a ``router`` that :func:`tunesmith.server.app.create_app` includes."""
