"""UPT's Transformer, one head at a time."""

import math

import torch


def layer_norm(x, tensors, name):
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def linear(x, tensors, name):
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def attention(x, tensors, heads, size):
    """Each head by itself; query, key and value maps are thirds of one matrix."""
    width, mixed = heads * size, []
    joint = linear(x, tensors, "queries_keys_values")
    for head in range(heads):
        q, k, v = (joint[:, part * width + head * size : part * width + (head + 1) * size] for part in range(3))
        mixed.append((q @ k.T / math.sqrt(size)).softmax(dim=-1) @ v)
    return linear(torch.cat(mixed, dim=1), tensors, "attention_out")


def transformed(u, tensors, heads, size):
    """U' = SA(U) + LN(U), then FFN(LN(U')) + LN(U')."""
    u = attention(u, tensors, heads, size) + layer_norm(u, tensors, "norm_attention")
    u = layer_norm(u, tensors, "norm_ffn")
    return linear(linear(u, tensors, "ffn_in").clamp(min=0), tensors, "ffn_out") + u
