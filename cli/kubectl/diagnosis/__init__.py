"""What `doctor` makes of what it has seen: `diagnose` asks each module here for its findings."""
