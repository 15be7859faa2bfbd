"""Named presets: the values that differ from the defaults in vidm.config, which are those of the published model.

config = Config.from_preset("tiny")
"""

from typing import Any

# Small networks that a CPU trains in minutes, with v prediction, which suits short training.
_SMALL = {
    "image_size": 32,
    "channel_mult": (1, 2),
    "attention_resolutions": (2,),
    "num_head_channels": 32,
    "channels_per_group": 8,
    "video_timesteps": 16,
    "prediction": "v",
    "lr": 1e-3,
    "workers": 2,
}
# The networks of pretrained_models/world, which were trained at 32 x 32 first and then at 64 x 64.
_WORLD = {
    **_SMALL,
    "model_channels": 32,
    "channel_mult": (1, 2, 3),
    "attention_resolutions": (4,),
    "num_res_blocks": 1,
    "batch_size": 16,
    "lr": 8e-4,
    "lr_schedule": "cosine",
    "warmup_iters": 200,
    "precision": "bf16",
    # Shadows in this world always fall to one side, so mirrored frames would not belong to it.
    "flip": False,
    "loss": "mse",
    "held_out": 64,
    "test_freq": 0,
    "save_freq": 500,
    "keep": 0,
}
PRESETS: dict[str, dict[str, Any]] = {
    "paper128": {},
    "medium64": {
        "image_size": 64,
        "model_channels": 96,
        "channel_mult": (1, 2, 3, 4),
        "attention_resolutions": (4, 8),
        "num_head_channels": 32,
        "channels_per_group": 8,
        "video_timesteps": 32,
        "prediction": "v",
        "batch_size": 64,
        "accum_steps": 2,
        "workers": 8,
        "lr": 1e-4,
        "warmup_iters": 1000,
        "total_iters": 200_000,
    },
    "tiny": {
        **_SMALL,
        "model_channels": 32,
        "num_res_blocks": 1,
        "batch_size": 8,
        "total_iters": 100,
        "print_freq": 10,
        "test_freq": 100,
        "save_freq": 100,
    },
    "demo": {
        **_SMALL,
        "model_channels": 64,
        "channel_mult": (1, 1, 2),
        "attention_resolutions": (4,),
        "num_res_blocks": 1,
        "batch_size": 16,
        "total_iters": 300,
        "lr_schedule": "cosine",
        "warmup_iters": 50,
        "ema_decay": 0.99,
        "precision": "bf16",
        "held_out": 0,
        "print_freq": 50,
        "test_freq": 0,
        "save_freq": 150,
    },
    "world": {**_WORLD, "total_iters": 10_000, "condition_noise": 0.1, "offset_noise": 0.1},
    "world-content": {**_WORLD, "generator": "content", "content_frames": "all", "total_iters": 14_000},
}
# What each preset is for, and on which hardware.
DESCRIPTIONS = {
    "paper128": "the published network, on GPUs of 24 GB or more, the default",
    "medium64": "your own videos on one GPU of 24 GB; nobody has trained it yet",
    "tiny": "a try-out in a minute on a CPU",
    "demo": "what make demo trains, in minutes on a CPU",
    "world": "the network of the shipped motion generator, in hours on a CPU",
    "world-content": "the network of the shipped content generator, in hours on a CPU",
}
