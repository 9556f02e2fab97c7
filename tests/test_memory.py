"""Flattened levels, valid ratios and reference points, by loops and by hand."""

import torch
from torch.testing import assert_close

from detectron2_ddetr.modeling import Memory
from detectron2_ddetr.modeling.memory import cell_centres, flatten_maps, to_levels, valid_ratio

from .modeling_cases import SHAPES, cell_centres_loop, level_masks, to_levels_loop

#: 3 x 5 valid cells of 4 x 6; the level of half the size is wholly valid.
OFFICIAL = [(4, 6), (2, 3)], [[(3, 5), (2, 3)]]


def numbered_maps(channels=2):
    """Each cell holds 1000 * image + 100 * level + 10 * row + column, plus 0.5 * channel."""
    return [
        torch.tensor(
            [
                [
                    [[1000 * n + 100 * level + 10 * i + j + 0.5 * c for j in range(w)]
                     for i in range(h)]
                    for c in range(channels)
                ]
                for n in range(2)
            ]
        )
        for level, (h, w) in enumerate(SHAPES)
    ]  # fmt: skip


def test_flatten():
    """Parity C17: levels in order, each row by row; the same for masks; and back."""
    maps = numbered_maps()
    memory = Memory.from_maps(maps, level_masks())
    expected = [
        [1000 * n + 100 * level + 10 * i + j
         for level, (h, w) in enumerate(SHAPES) for i in range(h) for j in range(w)]
        for n in range(2)
    ]  # fmt: skip
    assert memory.tokens.shape == (2, 47, 2)
    assert memory.tokens[..., 0].tolist() == expected
    assert_close(memory.tokens[..., 1], memory.tokens[..., 0] + 0.5)
    assert memory.spatial_shapes == SHAPES
    for level, expected_level in zip(memory.unflatten(), maps):
        assert_close(level, expected_level)
    rows, columns = memory.tokens[1, :, 0] % 100 // 10, memory.tokens[1, :, 0] % 10
    first = memory.tokens[1, :, 0] < 1100
    valid = torch.where(first, (rows < 4) & (columns < 5), (rows < 2) & (columns < 3))
    assert torch.equal(memory.padding_mask[1], ~valid)
    assert not memory.padding_mask[0].any()
    assert_close(flatten_maps(maps), memory.tokens)


def test_valid_ratio():
    """Parity C14: width before height, the share that is image and not the share of padding."""
    masks = level_masks(*OFFICIAL)
    assert_close(valid_ratio(masks[0]), torch.tensor([[5 / 6, 3 / 4]]))
    assert_close(valid_ratio(masks[1]), torch.ones(1, 2))
    memory = Memory.from_maps(numbered_maps(), level_masks())
    expected = torch.tensor([[[1.0, 1], [1, 1]], [[5 / 7, 4 / 5], [3 / 4, 2 / 3]]])
    assert_close(memory.valid_ratios, expected)


def test_cell_centres():
    """Parity C15: relative to the valid area, above 1 in the padding."""
    ratios = torch.stack([valid_ratio(mask) for mask in level_masks()], 1)
    centres = cell_centres(SHAPES, ratios)
    assert_close(centres, cell_centres_loop().float())
    assert_close(centres[1, 34], torch.tensor([6.5 / 5, 4.5 / 4]))


def test_official_encoder_references():
    """Parity C15: the official numbers for tokens 0 and 24, each on both levels."""
    shapes, valid = OFFICIAL
    ratios = torch.stack([valid_ratio(mask) for mask in level_masks(shapes, valid)], 1)
    references = to_levels(cell_centres(shapes, ratios), ratios)
    assert references.shape == (1, 30, 2, 2)
    first = torch.tensor([[0.083333, 0.125], [0.1, 0.166667]])
    second = torch.tensor([[0.138889, 0.1875], [0.166667, 0.25]])
    assert_close(references[0, 0], first, rtol=0, atol=1e-6)
    assert_close(references[0, 24], second, rtol=0, atol=1e-6)


def test_to_levels():
    """Parity C16: points and boxes; x and w by the width's ratio, y and h by the height's."""
    ratios = torch.stack([valid_ratio(mask) for mask in level_masks()], 1)
    for numbers in (2, 4):
        reference = torch.rand(2, 5, numbers, generator=torch.Generator().manual_seed(0))
        assert_close(to_levels(reference, ratios), to_levels_loop(reference))


def test_cells_are_found_where_they_are():
    """Parity C15: a cell's centre in the frame of its own padded level is (j + 0.5) / W."""
    ratios = torch.stack([valid_ratio(mask) for mask in level_masks()], 1)
    references = to_levels(cell_centres(SHAPES, ratios), ratios)
    start = 0
    for level, (height, width) in enumerate(SHAPES):
        own = references[1, start : start + height * width, level].view(height, width, 2)
        assert_close(own[2, 3], torch.tensor([3.5 / width, 2.5 / height]))
        start += height * width


def test_with_tokens():
    """Other tokens, the same geometry."""
    memory = Memory.from_maps(numbered_maps(), level_masks())
    other = memory.with_tokens(memory.tokens + 1)
    assert_close(other.unflatten()[1], memory.unflatten()[1] + 1)
    for name in ("padding_mask", "spatial_shapes", "valid_ratios"):
        assert getattr(other, name) is getattr(memory, name)
