"""What is computed anew from a run's configuration: closed forms and operation counts, without training."""
