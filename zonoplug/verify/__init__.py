"""From a model and a specification to a verdict: attack, bound, split."""
