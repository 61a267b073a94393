"""Replicas that look real from outside: the simulator's replica model behind real HTTP ports."""
