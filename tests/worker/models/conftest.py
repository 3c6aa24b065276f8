"""Fixtures for the models' tests."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """These matrices are small: more threads than one only wait for each other when tests share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
