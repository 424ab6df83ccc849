"""Plans by the real compilers of TPUs and GPUs, which need no device: in a process of its own."""
