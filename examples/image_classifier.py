"""An image classifier behind `model.name: torch`: pictures in, one row of class probabilities each.

It tells circles, squares and triangles apart in 16 x 16 grey pictures; `python examples/image_classifier.py` draws the
pictures and trains it anew (seconds on a CPU). A real one differs in two places: `decode`, and the layers.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

CLASSES = ("circle", "square", "triangle")
SIZE = 16
DATA = Path(__file__).parent / "data"


class ShapeClassifier(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self, weights: str = "") -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(16 * 4 * 4, len(CLASSES))),
        )
        if weights:
            self.load_state_dict(load_file(weights))

    def forward(self, pictures: Sequence[str]) -> torch.Tensor:
        """[pictures] -> [pictures, classes], each row adding up to 1."""
        pixels = torch.stack([decode(picture) for picture in pictures])
        return self.layers(pixels.to(self.layers[0].weight.device)).softmax(1)

    @staticmethod
    def num_tokens(_picture: str) -> int:
        """All pictures cost the same, so `maxTokensPerBatch` counts pictures."""
        return 1


def decode(picture: str) -> torch.Tensor:
    """[1, SIZE, SIZE] in 0 to 1, from the base64 text of its bytes."""
    raw = bytearray(base64.b64decode(picture))
    return torch.frombuffer(raw, dtype=torch.uint8).reshape(1, SIZE, SIZE) / 255


def draw(label: int, generator: torch.Generator) -> torch.Tensor:
    """[SIZE, SIZE] bytes: a shape somewhere, of some size, in noise."""
    x0, y0, radius = (
        torch.rand(3, generator=generator) * torch.tensor([4.0, 4.0, 3.0]) + torch.tensor([6.0, 6.0, 3.0])
    ).tolist()
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    dx, dy = (x - x0) / radius, (y - y0) / radius
    inside = (dx**2 + dy**2 < 1, (dx.abs() < 0.9) & (dy.abs() < 0.9), (dy.abs() < 0.9) & (dx.abs() < (dy + 0.9) / 1.8))
    noise = 60 * torch.rand(SIZE, SIZE, generator=generator)
    return (inside[label] * 180 + noise).to(torch.uint8)


def pictures(number: int, seed: int) -> tuple[list[str], list[int]]:
    """So many pictures and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = [at % len(CLASSES) for at in range(number)]
    return [base64.b64encode(bytes(draw(label, generator).flatten().tolist())).decode() for label in labels], labels


def train() -> ShapeClassifier:
    """Train on pictures that are not those of the example."""
    torch.manual_seed(0)
    model, (shown, labels) = ShapeClassifier(), pictures(1500, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        loss = nn.functional.nll_loss(model(shown).log(), torch.tensor(labels))
        loss.backward()
        optimizer.step()
    return model


if __name__ == "__main__":
    made, truth = pictures(60, seed=2)
    lines = [
        {"id": f"{CLASSES[label]}-{at}", "picture": shown}
        for at, (shown, label) in enumerate(zip(made, truth, strict=True))
    ]
    (DATA / "shapes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    save_file(train().state_dict(), DATA / "shapes.safetensors")
