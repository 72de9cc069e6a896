"""Block masks one at a time, in plain Python: what DINOv2's generator does, draw for draw.

An independent reference for `keras_ssl.layers.block_masks`, and the way to the official masks: the
order in which `random` is called decides them.
"""

import math

import numpy as np


class Recorder:
    """`random.Random` that notes every attempt as the four numbers in [0, 1) of `block_masks`."""

    def __init__(self, source):
        self.source, self.attempts = source, []

    def area(self, low, high):
        value = self.source.uniform(low, high)
        # Where the patches left are fewer than the smallest block, `high` lies below `low`.
        share = 0.0 if high == low else (value - low) / (high - low)
        self.attempts.append([share, 0.5, 0.5, 0.5])
        return value

    def log_aspect(self, low, high):
        value = self.source.uniform(low, high)
        self.attempts[-1][1] = (value - low) / (high - low)
        return value

    def place(self, axis, last):
        value = self.source.randint(0, last)
        self.attempts[-1][2 + axis] = (value + 0.5) / (last + 1)
        return value


class Replay:
    """The attempts of one row of `block_masks`' draws, where `random` would be asked."""

    def __init__(self, draws):
        self.draws, self.index = draws, -1

    def area(self, low, high):
        self.index += 1
        return low + (high - low) * float(self.draws[self.index][0])

    def log_aspect(self, low, high):
        return low + (high - low) * float(self.draws[self.index][1])

    def place(self, axis, last):
        return int(float(self.draws[self.index][2 + axis]) * (last + 1))


def block_mask(random, count, grid, min_patches=4, max_patches=None, min_aspect=0.3, tries=10):
    """One mask: blocks are put down until `count` patches are masked or ten tries in a row fail."""
    rows, columns = grid
    mask = np.zeros(grid, bool)
    aspects = math.log(min_aspect), math.log(1 / min_aspect)
    while mask.sum() < count:
        room = count - int(mask.sum())
        if max_patches is not None:
            room = min(room, max_patches)
        for _ in range(tries):
            area = random.area(min_patches, room)
            aspect = math.exp(random.log_aspect(*aspects))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= rows or width >= columns:
                continue
            top, left = random.place(0, rows - height), random.place(1, columns - width)
            block = np.zeros(grid, bool)
            block[top : top + height, left : left + width] = True
            new = int((block & ~mask).sum())
            if 0 < new <= room:
                mask |= block
                break
        else:
            break
    return mask
