"""`macl benchmark`: pretrain to evaluate over starts, label budgets, recipes and repeats."""
