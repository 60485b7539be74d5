"""The parts of the red team: see benchmarks/red_team.py."""
