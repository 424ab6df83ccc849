"""Language models that move between PyTorch and JAX with the numbers proven equal.

Each letter below names one array dimension throughout the code: in array names (`q_BTNH`), einsum
equations (`"BTD,DNH->BTNH"`), sharding (`constrain(q_BTNH, "BTNH")`) and checkpoint rules.

    B batch            D embed_dim          F mlp_dim
    T query length     N query heads        V vocab_size
    S key length       K key/value heads    E experts
    C cache slots      H head_dim           L layers
    G query heads per key/value head (N = K G)
    R rank of the two factors of LoRA, which are trained beside a frozen kernel
    I input_dim and O output_dim, for models of continuous inputs
    W width of the values in the state of a gated DeltaNet, where H is that of its keys

Some places have letters of their own: images are `images_ICHW` (images, channels, pixels); where
rows are flattened (experts, the loss, lookups) S counts the tokens of a device or of all rows
(`x_SD`), and M the rows that experts get; in the tiles of attention kernels R and C number tiles.
"""

from .compatibility.moved_modules import install

# Threads that XLA needs for each virtual CPU device: collectives block some of them. It stands
# here for the commands, which set it before JAX is imported.
THREADS_PER_DEVICE = 8

install()
