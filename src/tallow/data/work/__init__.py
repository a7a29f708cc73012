"""Work on tables in parts: pure functions, done in any process, and never twice."""
