"""Settings of every stage, the recipes that give them, and what is wrong with a mistaken one."""
