import pytest
import torch


@pytest.fixture(autouse=True)
def fixed_seed():
    """Global random numbers that a test happens to draw are the same in any order of tests."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
