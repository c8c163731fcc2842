"""Interchange interventions and alignment search on small networks."""
