"""How to talk to a Kubernetes API server, for all who do."""
