"""Templates for CPUs: TE expressions and their schedules."""
