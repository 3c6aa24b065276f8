"""The deciding side: what workers a run needs, what to make of their deaths, and what to show.

Shared by the Kubernetes controller and the local coordinator. Imports `contract`, never `worker`.
"""
