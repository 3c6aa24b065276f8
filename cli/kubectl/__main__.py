"""`python -m cli.kubectl` is `kubectl-inferencerun`."""

from cli.kubectl.main import main

main(prog_name="kubectl inferencerun")
