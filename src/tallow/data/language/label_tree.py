"""The tree of binary decisions of a hierarchical softmax."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def label_tree(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Huffman's tree as fastText builds it: the two rarest nodes become one, labels in their order from the last on.

    Args:
        counts: How often each label occurred, in falling order; in another one the tree is not the shortest.

    Returns:
        Left and right child of each inner node, labels - 1 x 2: a label, or the number of labels plus an inner node
        before this one.
    """
    labels = len(counts)
    tree = np.zeros((max(0, labels - 1), 2), dtype=np.int32)
    weights = counts.tolist()
    leaf, inner = labels - 1, labels
    for node in range(labels, 2 * labels - 1):
        for side in (0, 1):
            if leaf >= 0 and (inner >= node or weights[leaf] < weights[inner]):
                child, leaf = leaf, leaf - 1
            else:
                child, inner = inner, inner + 1
            tree[node - labels, side] = child
        weights.append(sum(weights[child] for child in tree[node - labels].tolist()))
    return tree
