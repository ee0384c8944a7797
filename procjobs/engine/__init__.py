"""The engine: enqueueing, and the worker that runs jobs. It knows the database, not packs, mail or the web."""
