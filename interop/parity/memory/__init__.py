"""Memory of large models: stores for arrays on disk, and when the allocator returns pages."""
