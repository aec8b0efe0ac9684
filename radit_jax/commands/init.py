"""Write an experiment on your own data: `radit init mydocs/ --lm ./my-llama --encoder ./my-encoder`.

Looks at the folder (passages, or documents in Markdown, HTML, PDF and text; questions, or none) and at the
checkpoints, and writes a commented file of settings that runs as it is. Says what is missing, and which
commands to run next.
"""

import argparse
from collections.abc import Sequence

from radit_jax.command_line import module_parser
from radit_jax.errors import exit_command, parse_and_run


def parser() -> argparse.ArgumentParser:
    """The command line of `radit init`."""
    p = module_parser("commands.init", __doc__, run_init)
    p.epilog = (__doc__ or "").partition("\n\n")[2].strip()
    p.add_argument("folder", help="passages or documents, and questions where there are any")
    # The models, and then the files, where their names do not tell.
    p.add_argument("--lm", default="", metavar="CHECKPOINT", help="a folder, hub:ORG/NAME or a GGUF file")
    p.add_argument("--encoder", default="", metavar="CHECKPOINT", help="default: MiniLM, if installed")
    p.add_argument("--chunk-encoder", default="", metavar="CHECKPOINT", help="default: the encoder")
    p.add_argument("--passages", default="", metavar="NAME", help="the file of passages in the folder")
    p.add_argument("--questions", default="", metavar="NAME", help="the file of questions to learn from")
    p.add_argument("--test-questions", default="", metavar="NAME", help="default: a tenth of the questions")
    p.add_argument("--output", metavar="FILE", help="default: FOLDER's name with .py")
    p.add_argument("--force", action="store_true", help="write over a file that is there")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return parse_and_run(parser(), arguments)


def run_init(options: argparse.Namespace) -> None:
    """Look at data and checkpoints, write the experiment, and print what was found."""
    from radit_jax.commands.new_experiment import write_experiment  # jax, which help does without

    write_experiment(options)


if __name__ == "__main__":
    exit_command(main)
