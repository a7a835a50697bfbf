"""torch's own attention as a peer (bench/peers/peer.py): softmax(q k') v over all pairs, over a graph's edges as a mask
of nodes x nodes, and over them as FlexAttention's mask of blocks, which runs forward alone on the CPU. Queries come
scaled."""

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

import peer

VERSIONS = {"torch": torch.__version__}
HEADS = 4


def split(x):  # nodes x heads*d -> 1 x heads x nodes x d
    return x.view(len(x), HEADS, -1).transpose(0, 1).unsqueeze(0)


def join(y):
    return y.squeeze(0).transpose(0, 1).flatten(1)


def mask_of(given):
    nodes = len(given["q"])
    mask = torch.zeros(nodes, nodes, dtype=torch.bool)
    mask[given["edges"][:, 1].long(), given["edges"][:, 0].long()] = True
    return mask


def dense(given, mask=None):
    leaves = {name: given[name].clone().requires_grad_() for name in "qkv"}

    def forward():
        return join(scaled_dot_product_attention(*map(split, leaves.values()), attn_mask=mask, scale=1.0))

    return forward, leaves


def masked(given):
    return dense(given, mask_of(given))


def flex(given):
    mask = mask_of(given)
    blocks = create_block_mask(lambda b, h, i, j: mask[i, j], None, None, *mask.shape, device="cpu")
    compiled = torch.compile(flex_attention)
    q, k, v = (split(given[name]).contiguous() for name in "qkv")
    return lambda: join(compiled(q, k, v, block_mask=blocks, scale=1.0)), {}


if __name__ == "__main__":
    peer.main(VERSIONS, {"all": dense, "masked": masked, "flex": flex})
