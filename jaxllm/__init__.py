"""Language models that move between PyTorch and JAX with the numbers proven equal.

One letter means one dimension, everywhere: in array names (`q_BTNH`), in einsum equations
(`"BTD,DNH->BTNH"`), in sharding (`constrain(q_BTNH, "BTNH")`) and in checkpoint rules.

    B batch            D embed_dim          F mlp_dim
    T query length     N query heads        V vocab_size
    S key length       K key/value heads    E experts
    C cache slots      H head_dim           L layers
    G query heads that share one key/value head (N = K G)
    I input_dim, O output_dim of models whose tokens are vectors of numbers
"""
