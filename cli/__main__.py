"""`python -m cli` is `inferencerun`."""

from cli.main import main

main(prog_name="inferencerun")
