"""Kernels: plain arrays in, plain arrays out."""
