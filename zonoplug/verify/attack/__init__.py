"""The search for a counterexample."""
