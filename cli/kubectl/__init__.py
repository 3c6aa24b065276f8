"""`kubectl inferencerun`: the same commands for a run that is named, not for an output that is pointed at."""
