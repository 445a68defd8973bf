"""A small tagger whose dropout masks belong to row and pass: splitting or shuffling a batch changes no number."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

B, T, C, WORDS = 32, 6, 5, 11


class DropoutByRow(nn.Dropout):
    """Dropout whose mask depends on the row and on the pass alone, so that batches may be split at will.

    The passes are calls in turn, or, `together`, repetitions of the rows in one call.
    """

    def __init__(self, width: int, passes: int, *, together: bool) -> None:
        super().__init__(0.5)
        self.passes, self.together = passes, together
        self.masks = 2 * torch.rand(3, B, T, width, generator=torch.Generator().manual_seed(1)).round()
        self.calls = 0
        self.rows = torch.tensor([])

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.together:
            number = torch.arange(len(x)) // (len(x) // self.passes)
            return x * self.masks[number, self.rows]
        self.calls += 1
        return x * self.masks[(self.calls - 1) % self.passes, self.rows]


class Tagger(nn.Module):
    """Words to a class for each position, with the plain loss of transformers when labels are given."""

    config = None

    def __init__(self, by_row: int = 0, *, together: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, 16)
        self.dropout = DropoutByRow(16, by_row, together=together) if by_row else nn.Dropout(0.5)
        self.head = nn.Linear(16, C)
        self.seen: list[tuple[int, bool]] = []

    def forward(self, words: Tensor, row: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        self.seen.append((len(words), self.training))
        if isinstance(self.dropout, DropoutByRow):
            self.dropout.rows = row
        logits = self.head(self.dropout(self.words(words)))
        if labels is None:
            return {"logits": logits}
        return {"loss": cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def sentences(rows: int = B) -> list[dict[str, Tensor]]:
    """Sentences in which between one and all positions count."""
    generator = torch.Generator().manual_seed(2)
    words = torch.randint(WORDS, (rows, T), generator=generator)
    labels = torch.randint(C, (rows, T), generator=generator)
    for row in range(rows):
        labels[row, 1 + row * row % T :] = -100
    return [{"words": words[row], "labels": labels[row], "row": torch.tensor(row)} for row in range(rows)]
