"""The finite networks beside the kernels: their training, its cost, and the cells of the table they fill."""
