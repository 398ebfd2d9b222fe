"""Kernel regression and gradient flow, and the cells of the table they fill."""
