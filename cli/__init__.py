"""The `inferencerun` command: one file per subcommand, and the coordinator for one machine."""
