"""Bad hyper-parameters, and the message that every optimizer gives for each of them."""

BAD = [
    ({"learning_rate": -0.1}, "learning_rate must be a finite number >= 0, got -0.1"),
    ({"learning_rate": float("nan")}, "learning_rate must be a finite number >= 0, got nan"),
    ({"learning_rate": 5e-324}, "learning_rate must not be so small that alpha / learning_rate"),
    ({"alpha": -1}, "alpha must be a finite number >= 0, got -1"),
    ({"beta": 1.5}, r"beta must be a number in \[0, 1\], got 1.5"),
    ({"weight_decay": -1}, "weight_decay must be a finite number >= 0, got -1"),
    ({"velocity_std": -1}, r"velocity_std must be None or a number in \[0, 7.86e\+37\], got -1"),
    ({"velocity_std": 1e39}, r"velocity_std must be None or a number in .*, got 1e\+39"),
    ({"seed": -1}, r"seed must be an integer in \[0, 2\*\*64\), got -1"),
    ({"seed": 0.5}, r"seed must be an integer in \[0, 2\*\*64\), got 0.5"),
    ({"seed": True}, r"seed must be an integer in \[0, 2\*\*64\), got True"),
    ({"first_step": 2}, "first_step must be 0 .* or 1 .*, got 2"),
]

# PyTorch's name is lr.
BAD_LR = [
    (
        {k.replace("learning_rate", "lr"): v for k, v in arguments.items()},
        m.replace("learning_rate", "lr"),
    )
    for arguments, m in BAD
]
