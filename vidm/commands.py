"""The commands, which import their modules when they are called: Ctrl-C is one line from the beginning. Ours."""

from vidm.interrupts import one_line_on_interrupt


def train() -> None:
    """vidm-train and diffusion_ddp_accum_constant_cu.py."""
    one_line_on_interrupt()
    from vidm.cli import train_main

    train_main()


def sample() -> None:
    """vidm-sample."""
    one_line_on_interrupt()
    from vidm.cli import sample_main

    sample_main()


def evaluate_fvd() -> None:
    """vidm-fvd and evaluate_FVD.py."""
    one_line_on_interrupt()
    from vidm.cli_evaluate import evaluate_fvd_main

    evaluate_fvd_main()


def evaluate_vis() -> None:
    """scripts/evaluate_VIS.py."""
    one_line_on_interrupt()
    from vidm.cli_evaluate import evaluate_vis_main

    evaluate_vis_main()
