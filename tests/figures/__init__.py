"""Pictures that the README and the paper's readers look at, drawn from runs."""
