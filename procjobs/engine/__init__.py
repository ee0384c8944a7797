"""The engine: enqueueing, and the worker that runs jobs. It knows the database and nothing of packs, mail or the web."""
