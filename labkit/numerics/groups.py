"""Group-wise scales: one for every few columns of each row, as weights of 4 bits need it.

With 16 codes a whole row can't share a scale: its largest weight would leave too few codes to all others. So a row is
cut into groups of g columns, each with a scale of its own (the paper's g is 256, MXFP4's 32, NVFP4's 16). The price is
one more number for each group: with a scale of 16 bits 16/256 = 0.06 bits a weight for g = 256, a whole bit for g = 16.
"""

from __future__ import annotations

from torch import Tensor

from labkit.errors import UsageError
from labkit.numerics.formats import Format, scale_for


def fitting_group(columns: int, wanted: int) -> int:
    """The largest group size up to `wanted` that divides the columns: of 256, it is 256 for 4,096 and 224 for 896.

    Raises UsageError unless both are positive.
    """
    if columns < 1 or wanted < 1:
        raise UsageError(f"{columns} columns can't be cut into groups of {wanted}.", fix="Give two positive numbers.")
    return next(size for size in range(min(wanted, columns), 0, -1) if columns % size == 0)


def group_scales(W: Tensor, fmt: Format, group_size: int) -> Tensor:
    """The symmetric scale of each group, [rows, columns / group_size], in W's dtype; zeros get the dtype's epsilon.

    W: [rows, columns]. Errors: UsageError for a group size that does not divide the columns, DataError for NaN or
    infinity in W.
    """
    if W.ndim != 2 or group_size < 1 or W.shape[1] % group_size:
        raise UsageError(
            f"Groups of {group_size} columns don't divide a weight of shape {list(W.shape)}.",
            "A group that reached into the next row would mix two outputs.",
            f"Use a divisor of {W.shape[-1]}; `fitting_group` finds the largest.",
        )
    grouped = W.reshape(W.shape[0], -1, group_size)  # [rows, groups, group_size]
    return scale_for(grouped, fmt, "per-token").squeeze(-1)


def for_each_column(scales: Tensor, columns: int) -> Tensor:
    """Group scales [rows, groups] repeated, one for each column, [rows, columns]: what W is divided by.

    Raises UsageError if the groups don't divide the columns.
    """
    if columns % scales.shape[-1]:
        raise UsageError(
            f"{scales.shape[-1]} groups can't share {columns} columns.", fix="Use the scales of this very layer."
        )
    return scales.repeat_interleave(columns // scales.shape[-1], dim=-1)
