"""LoRA adapters in and out: folders of PEFT, adapters of runs, and merging them into their base."""
