"""Rows of the model's input from the text table and the picture embeddings."""

from torch import Tensor

from lightvl.ops.library import out_operator

_gather_embeddings = out_operator("gather_embeddings")


def gather_embeddings(
    ids: Tensor,
    table: Tensor,
    image_rows: Tensor,
    image_arena: Tensor | None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Return each token's embedding: its picture row where it has one, else its row of the table.

    Args:
        ids: int64 [T], rows of `table`; not read for a token that has a picture row.
        table: [V, C], row-strided.
        image_rows: int32 [T], rows of `image_arena`, or negative for text.
        image_arena: [A, C], row-strided, dtype of `table`; None when the step has no pictures:
            `image_rows` is not read then.
        out: [T, C] to write to; a new tensor when absent.

    Returns:
        [T, C] in the dtype of `table`, `out` where it was given.

    Raises:
        ValueError: shapes or dtypes do not fit or, checked on the CPU alone, a row is not there.
    """
    if out is None:
        out = table.new_empty(ids.shape[0], table.shape[1])
    _gather_embeddings(ids, table, image_rows, image_arena, out)
    return out
