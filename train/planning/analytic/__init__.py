"""Plans without a compiler: the traced step, split over the mesh and priced."""
