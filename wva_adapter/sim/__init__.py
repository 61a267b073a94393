"""A fleet of replicas in virtual time: pure, seeded, the same every time."""
