"""PyTorch's own file formats (zip, pickle, DCP), read and written without PyTorch."""
