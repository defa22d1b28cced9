"""What to run: experiment files and the tables that they hold. Nothing here imports torch."""
