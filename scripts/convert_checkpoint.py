"""python scripts/convert_checkpoint.py SOURCE TARGET [--video-timesteps N] [--half]

Converts a checkpoint of any format that VIDM reads, such as the authors' .pth.tar. A TARGET ending in .pt is a VIDM
checkpoint for training. One ending in .safetensors contains the averaged weights, and a .json file of the same name the
settings.
"""

from vidm.interrupts import one_line_on_interrupt

if __name__ == "__main__":
    one_line_on_interrupt()  # before imports that take seconds

from vidm.checkpoint import load_model, save_checkpoint
from vidm.checkpoint_formats import load_any, save_safetensors
from vidm.console import CommandParser, given_path
from vidm.runtime import exit_on_user_error


def main() -> None:
    parser = CommandParser(description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("source", type=given_path, help="the checkpoint to read")
    parser.add_argument("target", type=given_path, help="the .pt or .safetensors file to write")
    parser.add_argument(
        "--video-timesteps", type=int, metavar="N", help="frames per training video, if the file does not contain them"
    )
    parser.add_argument("--half", action="store_true", help="write .safetensors in float16, half as large")
    options = parser.parse_args()
    with exit_on_user_error():
        if options.target.suffix not in (".pt", ".safetensors"):
            raise ValueError(f"{options.target}: give a name that ends in .pt or .safetensors")
        if options.half and options.target.suffix == ".pt":
            raise ValueError("--half is for .safetensors; .pt files are for training and keep float32")
        checkpoint = load_any(options.source, options.video_timesteps)
        for state in (checkpoint.state_dict, checkpoint.ema_state_dict):
            load_model(checkpoint.config, state, options.source)
        if options.target.suffix == ".pt":
            save_checkpoint(options.target, checkpoint)
        else:
            save_safetensors(options.target, checkpoint, options.half)
        print(f"wrote {options.target}: {len(checkpoint.ema_state_dict)} tensors, step {checkpoint.step}")


if __name__ == "__main__":
    main()
